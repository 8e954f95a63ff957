"""The study of the joint space: budgets on both axes, and what its summary says."""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "joint-vs-bits" / "measure.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("joint_study", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_budgets_fall_from_bits_a_parameter(study: ModuleType) -> None:
    asked = argparse.Namespace(cost="weight_bytes", high=8.0, low=2.0, budgets=3)
    assert study.budgets_of(asked, 1000) == [1000, 500, 250]
    assert study.place("weight_bytes", 500, 1000) == 4.0


def test_budgets_of_times_lie_within_what_bit_widths_reach(
    study: ModuleType, tiny_llama_path: Path
) -> None:
    asked = argparse.Namespace(
        cost="decode_ms",
        model=str(tiny_llama_path),
        device="h100",
        times="modelled",
        context=512,
        budgets=4,
    )
    budgets = study.budgets_of(asked, 1000)
    assert len(budgets) == 4
    assert budgets == sorted(budgets, reverse=True)
    assert study.place("decode_ms", budgets[0], 1000) == budgets[0]


def test_the_summary_compares_the_spaces_in_pairs(study: ModuleType) -> None:
    def row(space: str, seed: int, loss: float, sparse: float) -> dict[str, object]:
        kinds = {"sparse": sparse, "quantized": 1 - sparse}
        return {
            "space": space,
            "seed": seed,
            "budget": 500,
            "heldout": [loss],
            "shares": kinds,
            "family": "sparse",
        }

    rows = [row("joint", 0, 1.0, 0.5), row("joint", 1, 4.0, 0.25)]
    rows += [row("bits", 0, 2.0, 0.0), row("bits", 1, 2.0, 0.0)]
    (found,) = study.summary(rows, "weight_bytes", 1000)
    assert found["place"] == 4.0
    assert found["ratio"] == pytest.approx(1.0)
    assert found["shares"]["sparse"] == pytest.approx(0.375)
    assert found["families"] == {"sparse": 2}
