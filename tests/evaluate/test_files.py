"""A model from its folder, on a text and on tasks, against a base or a saved reference."""

import json
import math

import pytest
import torch
from torch.nn import functional

from autocomp import api
from autocomp.core.errors import ConfigError, StoreError
from autocomp.data import load_corpus, windows
from autocomp.evaluate import (
    Measurement,
    TaskRequest,
    TextRequest,
    evaluate_path,
    save_reference,
)
from autocomp.models import load

TEXT = TextRequest(tokens=512, window=64)
FAST = {"data.calibration_tokens": 512, "data.window": 64, "search.finish": "none"}


@pytest.fixture(scope="module")
def compressed(trained_llama_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("eval") / "w3"
    return str(api.compress(str(trained_llama_path), out, linear="rtn-w3g32", settings=FAST))


def test_perplexity_is_that_of_a_plain_loop(trained_llama_path):
    (found,) = evaluate_path(str(trained_llama_path), text=TEXT, dtype="float32")
    loaded = load(str(trained_llama_path), dtype=torch.float32)
    ids = windows(load_corpus("pydoc"), "heldout", loaded.tokenizer, tokens=512, length=64)
    losses = []
    with torch.no_grad():
        for window in ids.input_ids:
            logits = loaded.model(window[None]).logits[0, :-1].double()
            losses.append(functional.cross_entropy(logits, window[1:]).item())
    mean = math.fsum(losses) / len(losses)
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(mean), rel=1e-5)
    bits = mean * 512 / math.log(2) / ids.text_bytes
    assert found.metrics["bits_per_byte"].value == pytest.approx(bits, rel=1e-5)
    assert found.data.digest == ids.digest
    assert (found.data.units, found.data.tokens, found.data.window) == (8, 512, 64)
    assert (found.dtype, found.device, found.floor_nats) == ("float32", "cpu", None)


def test_a_compressed_folder_against_its_base_and_against_a_saved_reference(
    trained_llama_path, compressed, tmp_path
):
    base = str(trained_llama_path)
    (found,) = evaluate_path(compressed, text=TEXT, base=base)
    metrics = found.metrics
    assert metrics["kl_nats"].value > 0.01
    assert 0.0 < metrics["kl_nats"].standard_error < metrics["kl_nats"].value
    assert 0.0 < metrics["top1_agreement"].value < 1.0
    difference = math.log(metrics["perplexity"].value / metrics["base_perplexity"].value)
    assert metrics["nll_difference"].value == pytest.approx(difference, rel=1e-6)
    assert found.efficiency.compression_ratio > 1.5
    path = save_reference(base, tmp_path / "base.safetensors", TEXT)
    (again,) = evaluate_path(compressed, base=str(path))
    assert again.data == found.data
    assert again.floor_nats == found.floor_nats
    for name, metric in metrics.items():
        assert again.metrics[name].value == pytest.approx(metric.value, abs=1e-5)
    with pytest.raises(ConfigError, match="holds the text"):
        evaluate_path(compressed, text=TEXT, base=str(path))


def test_the_record_survives_json(trained_llama_path):
    (found,) = evaluate_path(str(trained_llama_path), text=TEXT, base=str(trained_llama_path))
    assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert abs(found.metrics["kl_nats"].value) < 1e-6
    assert {"torch", "transformers", "python"} <= set(found.versions)
    assert "threads" in found.hardware


def test_tasks_alone_read_no_text(trained_llama_path, tmp_path):
    lines = [
        {"text": f"He went to the {place} and then left the {place}"}
        for place in ("house", "shop", "park")
    ]
    (tmp_path / "lambada_test.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    request = TaskRequest(("lambada_openai",), str(tmp_path), limit=2)
    (found,) = evaluate_path(str(trained_llama_path), tasks=request)
    assert found.data.units == 2
    assert 0.0 <= found.metrics["acc"].value <= 1.0
    both = evaluate_path(str(trained_llama_path), tasks=request, text=TEXT)
    assert [one.data.window for one in both] == [64, 0]


def test_bad_requests(trained_llama_path, tmp_path):
    base = str(trained_llama_path)
    with pytest.raises(ConfigError, match="unknown dtype 'int3'"):
        evaluate_path(base, dtype="int3")
    with pytest.raises(ConfigError, match="unknown corpus"):
        evaluate_path(base, text=TextRequest(corpus="nowhere"))
    damaged = tmp_path / "x.safetensors"
    damaged.write_bytes(b"no")
    with pytest.raises(StoreError, match="truncated or damaged"):
        evaluate_path(base, base=str(damaged))
