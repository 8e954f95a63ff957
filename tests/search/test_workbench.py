"""Where a search's texts come from."""

import pytest
import torch

from autocomp.config import load_config
from autocomp.search.workbench import Workbench

SETTINGS = {
    "data.window": 32,
    "data.calibration_tokens": 160,
    "data.rungs": [64],
    "data.heldout_tokens": 64,
}


@pytest.fixture
def bench(tiny_llama_path):
    def make(calibration, seed=0):
        settings = {"model": str(tiny_llama_path), "seed": seed, "data.calibration": calibration}
        return Workbench(load_config(None, SETTINGS | settings))

    return make


def test_calibration_text_is_the_corpus_a_recipe_or_both(bench):
    corpus, written, mixed = map(bench, ("corpus", "selfgen-t1", "mix:selfgen-t1"))
    assert [b.calibration.corpus for b in (corpus, written, mixed)] == [
        "pydoc", "selfgen-t1", "pydoc+selfgen-t1",
    ]  # fmt: skip
    assert all(b.calibration.input_ids.shape == (5, 32) for b in (corpus, written, mixed))
    assert torch.equal(mixed.calibration.input_ids[1::2], written.calibration.input_ids[:2])
    three = mixed.calibration.input_ids[::2]
    assert torch.equal(three, corpus.windows("calibration", 96).input_ids)


def test_recipes_follow_the_seed_and_count_in_digests(bench):
    digests = {
        bench(*arguments).stats_digest
        for arguments in (("corpus",), ("selfgen-t1",), ("selfgen-t1", 1), ("mix:selfgen-t1",))
    }
    assert len(digests) == 4
    assert bench("selfgen-t1").stats_digest in digests


def test_search_and_heldout_text_stay_the_corpus(bench):
    corpus, written = bench("corpus"), bench("selfgen-t1")
    assert torch.equal(corpus.search_windows, written.search_windows)
    assert torch.equal(
        corpus.heldout_meter.reference.windows, written.heldout_meter.reference.windows
    )


def test_a_recipe_is_written_by_the_base_whatever_the_candidate_holds(
    bench, monkeypatch, tmp_path
):
    expected = bench("selfgen-t0.9").calibration.digest
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path))  # where nothing is kept yet
    other = bench("selfgen-t0.9")
    with torch.no_grad():
        other.model.get_input_embeddings().weight.zero_()
    assert other.calibration.digest == expected
