"""``autocomp eval`` around a fake evaluator."""

import json

import pytest

from autocomp.evaluate import TaskRequest, TextRequest
from autocomp.evaluate.record import DataRead, Efficiency, Measurement, Metric


def measurement(name, window, **metrics):
    return Measurement(
        metrics=metrics,
        data=DataRead(name=name, digest="d", units=4, tokens=256, window=window),
        dtype="bfloat16",
        device="cpu",
        hardware="a processor, 2 threads",
        seconds=3.0,
        floor_nats=2.5e-4 if "kl_nats" in metrics else None,
        efficiency=Efficiency(100, 250, 2.5, 10**9, 2 * 10**9, 2048),
    )


@pytest.fixture
def asked(monkeypatch):
    seen = []

    def evaluate_path(path, **settings):
        seen.append((path, settings))
        found = [measurement("pydoc", 64, perplexity=Metric(12.5, 0.25))]
        if settings["base"]:
            found = [measurement("pydoc", 64, kl_nats=Metric(0.25, 0.01))]
        if settings["tasks"]:
            found.append(measurement("piqa", 0, acc=Metric(0.5, 0.02)))
        return found

    monkeypatch.setattr("autocomp.evaluate.evaluate_path", evaluate_path)
    return seen


def test_perplexity(run, asked):
    answer = run("eval", "folder")
    assert answer.code == 0
    assert "12.5000" in answer.out
    assert "0.2500" in answer.out
    assert "4 windows of 64, 256 tokens" in answer.out
    assert "1/2.50 of the base's 250" in answer.out
    assert "kl" not in answer.out
    path, settings = asked[0]
    assert path == "folder"
    del settings["progress"]
    assert settings == {
        "text": None, "tasks": None, "base": None, "device": "auto", "dtype": "auto",
    }  # fmt: skip


def test_kl_to_a_base_as_json(run, asked):
    answer = run("eval", "folder", "--base", "tiny", "--data", "my.txt", "--json", "--window", 256)
    data = json.loads(answer.out)
    assert data["base"] == "tiny"
    (found,) = data["measurements"]
    assert found["metrics"]["kl_nats"] == {"value": 0.25, "standard_error": 0.01}
    assert found["floor_nats"] == 2.5e-4
    assert Measurement.from_json(found).efficiency.compression_ratio == 2.5
    assert asked[0][1]["text"] == TextRequest(corpus="my.txt", window=256)
    assert "2.50e-04 nats" in run("eval", "folder", "--base", "tiny").out


def test_tasks_and_protocols(run, asked):
    answer = run(
        "eval", "folder", "--tasks", "piqa, boolq", "--suite", "zero-shot", "--limit", 200,
        "--data-dir", "files",
    )  # fmt: skip
    assert "4 examples" in answer.out
    settings = asked[0][1]
    assert settings["tasks"] == TaskRequest(("piqa", "boolq", "zero-shot"), "files", 200, 1)
    assert settings["text"] is None
    run("eval", "folder", "--protocol", "wikitext2", "--data-dir", "files")
    assert asked[1][1]["text"] == TextRequest(protocol="wikitext2", data_dir="files")
    refused = run("eval", "folder", "--protocol", "wikitext2", "--data", "pydoc")
    assert refused.code == 2
    assert "--data and --protocol" in refused.err


def test_a_reference_is_saved(run, monkeypatch, tmp_path):
    seen = []

    def save_reference(path, out, text, *, device):
        seen.append((path, text, device))
        return out

    monkeypatch.setattr("autocomp.evaluate.save_reference", save_reference)
    answer = run("eval", "base", "--save-reference", tmp_path / "r.safetensors", "--tokens", 512)
    assert answer.code == 0
    assert "use it as --base" in answer.err
    assert seen == [("base", TextRequest(tokens=512), "auto")]
