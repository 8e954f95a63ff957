"""The study of allocation: its rows fit real layers, and its summary is in pairs."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

from autocomp.core.registry import SPACES
from autocomp.core.spec import LayerSpec
from autocomp.search.allocate import ladders, share_kept
from autocomp.testing.spaces import toy_sketch

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "allocation" / "measure.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("allocation_study", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_is_one_ladder_with_more_and_less_than_its_uniform_mask(
    study: ModuleType,
) -> None:
    sketch = toy_sketch()
    for row in study.rows(32):
        lists = SPACES["joint"].candidates(sketch, linear=row.masks, embedding=["dense"])
        (ladder,) = ladders(sketch, lists, "mask")
        uniform = share_kept(LayerSpec.parse(row.uniform), "mask", (64, 64))
        for shares in ladder.options.values():
            assert min(shares) < uniform < max(shares) == 1.0
            assert any(share == pytest.approx(uniform) for share in shares)


def test_ratios_are_over_the_uniform_mask_of_the_same_seed(study: ModuleType) -> None:
    def row(arm: str, *losses: float) -> dict[str, object]:
        return {"row": "2:4", "arm": arm, "heldout": losses}

    found = [
        {"seed": 0, "rows": [row("uniform", 1.0, 3.0), row("owl", 0.5, 1.5), row("search", 1.0)]},
        {"seed": 1, "rows": [row("uniform", 4.0), row("owl", 4.0)]},
    ]
    lines = {line["arm"]: line for line in study.summary(found)}
    assert lines["owl"]["ratio"] == pytest.approx(math.sqrt(0.5))
    assert lines["owl"]["kl_nats"] == pytest.approx(2.0)
    assert (lines["owl"]["better"], lines["owl"]["of"]) == (1, 2)
    assert lines["search"]["ratio"] == pytest.approx(0.5)
    assert lines["search"]["interval"] is None
