"""The Python verbs do what the commands do."""

import pytest

from autocomp import api

SETTINGS = {
    "data.window": 64,
    "data.calibration_tokens": 512,
    "data.rungs": (128, 512),
    "data.heldout_tokens": 512,
    "search.trials": 4,
    "search.finalists": 1,
    "search.baselines": 2,
}


def test_verbs_end_to_end(trained_llama_path, tmp_path):
    model = str(trained_llama_path)
    estimate = api.check(model, max_bytes="45kB", settings=SETTINGS)
    assert estimate.smallest_bytes < 45_000 < estimate.largest_bytes
    result = api.search(model, max_bytes="45kB", study_dir=tmp_path / "s", settings=SETTINGS)
    assert api.front(tmp_path / "s").best == result.best
    assert api.show(tmp_path / "s", result.best.number).weight_bytes == result.best.weight_bytes
    report = api.export(tmp_path / "s", result.best.number, tmp_path / "out")
    assert report.weight_bytes == result.best.weight_bytes
    text = api.TextRequest(tokens=512, window=64)
    (measured,) = api.evaluate(str(tmp_path / "out"), text=text, base=model)
    kl_nats = measured.metrics["kl_nats"].value
    assert kl_nats == pytest.approx(result.best.heldout_kl_nats, rel=0.02)
    folder = api.compress(model, tmp_path / "q", linear="gptq-w4g64", settings=SETTINGS)
    assert api.load(folder).config.vocab_size == api.load(tmp_path / "out").config.vocab_size
