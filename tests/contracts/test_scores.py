"""Every registered score fulfils its contract."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM

from autocomp.config import load_config
from autocomp.core.registry import SCORES
from autocomp.data import load_corpus
from autocomp.models.tiny import tiny, train_tiny
from autocomp.search.workbench import Workbench
from autocomp.testing import scores as suite

SETTINGS = {
    "data.window": 64,
    "data.calibration_tokens": 640,
    "data.rungs": (128, 256),
    "data.heldout_tokens": 64,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A head of its own, trained, in the dtype that files hold."""
    folder = tiny("llama-untied", tmp_path_factory.mktemp("models") / "untied")
    train_tiny(folder, "\n\n".join(load_corpus("pydoc").calibration)[:20_000])
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    return Workbench(load_config(None, {"model": str(folder), **SETTINGS}))


@pytest.mark.parametrize("name", SCORES)
def test_described(name: str) -> None:
    suite.check_described(name)


@pytest.mark.parametrize(
    "check",
    [
        suite.check_every_kind,
        suite.check_dense_costs_nothing,
        suite.check_coarser_costs_more,
        suite.check_pairs,
        suite.check_file,
    ],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
@pytest.mark.parametrize("name", SCORES)
def test_contract(name: str, check: Callable[[str, Workbench], None], bench: Workbench) -> None:
    check(name, bench)
