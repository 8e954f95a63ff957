"""The study of warm starts on two tiny models."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from autocomp.data import load_corpus
from autocomp.models.tiny import tiny, train_tiny
from autocomp.search.study import Study

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "warm-start" / "measure.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("warm_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_model_is_warmed_by_the_other(study, tmp_path, trained_llama_path, capsys):
    other = tiny("qwen2", tmp_path / "qwen2")
    train_tiny(other, "\n\n".join(load_corpus("pydoc").calibration)[:20_000], steps=60)
    out, runs = tmp_path / "new" / "warm.json", tmp_path / "runs"
    models = [str(trained_llama_path), str(other)]
    sizes = ["--window", "64", "--tokens", "256", "--calibration", "256", "--trials", "4"]
    options = ["--space", "bits", "--seeds", "1", "--at", "1", "4", "--runs", str(runs)]
    study.main([*models, *sizes, *options, "--out", str(out)])
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [Path(row["model"]).name for row in record["rows"]] == ["trained-llama", "qwen2"]
    for row in record["rows"]:
        for kind in ("cold", "warm"):
            assert len(row[kind]) == 4
            assert (np.diff(row[kind]) <= 0).all()
    for model, source in (("trained-llama", "qwen2"), ("qwen2", "trained-llama")):
        warm = Study.open_existing(runs / "warm" / f"{model}-0")
        assert warm.warm_sources == (str((runs / "cold" / f"{source}-0").resolve()),)
    assert [row["trials"] for row in record["summary"]] == [1, 4]
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "| 4 | " in capsys.readouterr().out


def test_warm_over_cold_in_pairs(study):
    """Two searches, 10 % better and 10 % worse: no gain, in one of two."""
    rows = [{"cold": [2.0, 1.0], "warm": [2.0, 1.1]}, {"cold": [2.0, 1.1], "warm": [2.0, 1.0]}]
    first, last = study.compare(rows, (1, 9))
    assert (first["ratio"], first["better"]) == (1.0, 0)
    assert last["ratio"] == pytest.approx(1.0)
    assert last["low"] < 1 < last["high"]
    assert (last["better"], last["searches"]) == (1, 2)
