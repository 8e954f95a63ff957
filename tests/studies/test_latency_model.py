"""The latency study on a tiny model: what it draws, what it writes, and that memory is counted."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from autocomp.core.spec import DENSE, LayerSpec
from autocomp.models import sketch_of

FOLDER = Path(__file__).resolve().parents[2] / "studies" / "latency-model"


def imported(name):
    spec = importlib.util.spec_from_file_location(f"latency_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study():
    return imported("measure")


def test_plans_spread_evenly_over_the_predictions(study):
    predicted = [1.0, 1.1, 1.2, 1.3, 5.0, 9.0]
    assert study.stratified(list("abcdef"), predicted, 3) == [0, 4, 5]
    assert study.stratified(list("abcdef"), predicted, 6) == [0, 1, 2, 3, 4, 5]


def test_plans_mix_formats_and_drop_sub_blocks(study, tiny_llama_path):
    sketch, rng = sketch_of(str(tiny_llama_path)), np.random.default_rng(0)
    specs = [LayerSpec.parse(token) for token in ("rtn-w4g64", "rtn-w8g128")]
    plans = [study.random_plan(sketch, specs, rng) for _ in range(40)]
    assert len({plan.digest for plan in plans}) > 20
    used = {spec for plan in plans for spec in plan.layers.values()}
    assert used == {DENSE, study.BYPASS, *specs}
    narrow = [s.name for s in sketch.weights() if s.shape[1] == 64]
    assert all(plan[name] != specs[1] for plan in plans for name in narrow)


def test_it_predicts_measures_and_writes(study, tiny_llama_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("autocomp.evaluate.bench.COLD_BYTES", 2**13)
    monkeypatch.setattr(study, "CANDIDATES", 20)
    out = tmp_path / "new" / "latency.json"
    study.main(
        ["--model", str(tiny_llama_path), "--plans", "3", "--specs", "rtn-w4g16,rtn-w8g16",
         "--context", "16", "--repeats", "3", "--device", "cpu", "--dtype", "float32",
         "--out", str(out)]
    )  # fmt: skip
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found["rows"]) == 3
    predicted = [row["predicted_ms"] for row in found["rows"]]
    assert predicted == sorted(predicted)
    assert min(predicted) > 0
    errors = [abs(r["predicted_ms"] / r["measured_ms"] - 1) for r in found["rows"]]
    assert found["median_error"] == pytest.approx(np.median(errors))
    assert len(found["noise"]["same_plan_twice"]) == 3
    assert found["overhead"]["runs"] == 9
    assert "rank correlation" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_of_a_fresh_process_holds_the_file(tiny_llama_path, tmp_path):
    out = tmp_path / "memory.json"
    imported("memory").main(
        ["--model", str(tiny_llama_path), "--rows", "dense", "--context", "32", "--out", str(out)]
    )
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    parts = ("weights_bytes", "cache_bytes", "activations_bytes", "workspace_bytes")
    assert row["predicted_bytes"] == sum(row[name] for name in parts)
    assert row["peak_rss_bytes"] >= row["loaded_rss_bytes"]
    assert row["peak_rss_bytes"] > row["weights_bytes"]
