"""The study of two workers on a tiny model: the enqueued part of the front is equal."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "ray" / "measure.py"


@pytest.mark.slow
def test_both_ways_measure_the_same(tmp_path, trained_llama_path, capsys):
    spec = importlib.util.spec_from_file_location("ray_study", SCRIPT)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    out = tmp_path / "new" / "ray.json"
    sizes = ["--window", "64", "--tokens", "512", "--calibration", "512", "--trials", "8"]
    limits = ["--max-bytes", "45kB", "--seeds", "1", "--out", str(out)]
    study.main(["--model", str(trained_llama_path), *sizes, *limits])
    record = json.loads(out.read_text(encoding="utf-8"))
    (row,) = record["rows"]
    assert row["enqueued_front_equal"]
    assert row["enqueued_front"] > 0
    assert row["plans_of_both"] >= row["enqueued_front"]
    assert row["max_loss_difference"] < 1e-4
    assert [search["way"] for search in record["searches"]] == ["inline", "ray"]
    assert all(search["trials"] > 4 for search in record["searches"])
    assert "times as many tokens a second" in capsys.readouterr().out
