"""The study of ties on a tiny model: equal bytes, projections, and what it writes."""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from autocomp.core.progress import Silent
from autocomp.data.deal import dealt

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "tied-vs-untied" / "measure.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("tied_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_plans_hold_the_budget_and_tied_ones_the_tie(
    study, tmp_path, trained_llama_path, capsys
):
    out = tmp_path / "new" / "tied.json"
    sizes = ["--window", "64", "--tokens", "512", "--calibration", "512", "--plans", "6"]
    run = ["--model", str(trained_llama_path), "--bits", "3.5", "--seeds", "2", "--out", str(out)]
    study.main([*run, *sizes])
    record = json.loads(out.read_text(encoding="utf-8"))
    assert out.with_suffix(".png").stat().st_size > 1000
    rows = record["rows"]
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        assert row["weight_bytes"] <= row["budget_bytes"] < 1.1 * row["weight_bytes"]
        assert row["plan"] == "untied" or row["groups_disagreeing"] == 0
        assert len(row["searched"]) == len(row["heldout"]) == 8
    for seed in (0, 1):
        for plan in ("untied", "tied"):
            score, corrected = (
                np.mean(next(
                    row["searched"] for row in rows
                    if (row["seed"], row["plan"], row["by"]) == (seed, plan, by)
                ))
                for by in ("score", "corrected")
            )  # fmt: skip
            assert corrected <= score, "the uncorrected plan is one of those measured"
    assert {(row["by"], row["plan"]) for row in record["summary"]} == {
        (by, plan) for by in ("score", "corrected") for plan in ("tied", "projection")
    }
    assert all(len(row["difference_low_high"]) == 2 for row in record["summary"])
    assert "| 3.5 | corrected | projection |" in capsys.readouterr().out


def test_a_tied_plan_is_its_own_projection(study, tmp_path, trained_llama_path):
    """And the budget between two uniform plans is what both take, by the share of each."""
    asked = argparse.Namespace(
        model=str(trained_llama_path), corpus="pydoc", device="cpu", window=64, tokens=512,
        calibration=512, group=64,
    )  # fmt: skip
    bench = study.Bench(asked, 0, dealt("pydoc", 0, tmp_path), Silent())
    budget = bench.budget(3.5)
    assert budget == pytest.approx((bench.budget(3.0) + bench.budget(4.0)) / 2, abs=1)
    free, tied = bench.context(False, budget), bench.context(True, budget)
    solution = study.solve(tied.problem, budget)
    plan = tied.space.decode(tied.params(solution))
    assert study.projected(free, tied, plan) == plan
    mixed = free.space.decode(free.params(study.solve(free.problem, budget)))
    near = study.projected(free, tied, mixed)
    assert study.disagreeing(tied, near) == 0
    assert tied.exact_bytes(near) <= budget
