"""``autocomp eval`` around a fake evaluator."""

import json

import pytest


@pytest.fixture
def asked(monkeypatch):
    seen = []

    def evaluate_path(path, **settings):
        seen.append((path, settings))
        found = {"perplexity": 12.5, "bits_per_byte": 1.1, "corpus": settings["corpus"]}
        return found | ({"kl_nats": 0.25} if settings["base"] else {})

    monkeypatch.setattr("autocomp.evaluate.evaluate_path", evaluate_path, raising=False)
    return seen


def test_perplexity(run, asked):
    answer = run("eval", "folder")
    assert answer.code == 0
    assert "12.5000" in answer.out
    assert "kl" not in answer.out
    path, settings = asked[0]
    assert path == "folder"
    assert settings == {
        "corpus": "pydoc", "tokens": 16384, "window": 512, "device": "auto", "base": None,
    }  # fmt: skip


def test_kl_to_a_base_as_json(run, asked):
    answer = run("eval", "folder", "--base", "tiny", "--data", "my.txt", "--json", "--window", 256)
    data = json.loads(answer.out)
    assert (data["base"], data["kl_nats"], data["corpus"]) == ("tiny", 0.25, "my.txt")
    assert asked[0][1]["window"] == 256
