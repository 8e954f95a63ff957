"""Folding an order moves rows as they are stored, and changes nothing that is computed."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch

import autocomp
from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.cost import weight_bytes
from autocomp.layers import write_native
from autocomp.layers.fold_order import fold_orders, reordered
from autocomp.layers.native import WEIGHTS_FILE
from autocomp.models import LoadedModel
from autocomp.models.producers import row_makers
from autocomp.models.structure import structure
from autocomp.models.weights import get_weight
from autocomp.testing.methods import site

TOKENS = torch.arange(3, 43).reshape(2, 20)
MAKERS = (
    "rtn-w4g16",
    "magnitude-s50",
    "shuffle+magnitude-2:4+rtn-w3g16",
    "dense",
    "magnitude-s50+rtn-w4g16-sym",
    "magnitude-1:4",
    "shuffle+magnitude-2:4+rtn-w4+absmax-a8",
)
WRITER = "shuffle+magnitude-2:4+rtn-w4g16"
compress = load_object("autocomp.methods.compose:compress")


class Shuffled:
    """A tiny model that reads random orders, in front of and inside its MLPs."""

    def __init__(self, loaded: LoadedModel, makers: tuple[str, ...] = MAKERS) -> None:
        self.loaded, self.sketch = loaded, loaded.sketch
        self.makers = row_makers(structure(loaded.model))
        self.writers = {reader for made in self.makers.values() for reader in made[0].readers}
        generator, tokens = torch.Generator().manual_seed(0), cycle(makers)
        layers, self.weights = {}, {}
        for place in self.sketch.sites:
            linear = place.kind == "linear"
            token = WRITER if place.name in self.writers else next(tokens) if linear else "dense"
            layers[place.name] = LayerSpec.parse(token)
        for place in self.sketch.weights():
            order = torch.randperm(place.shape[1], generator=generator).to(torch.int16)
            spec = layers[place.name]
            self.weights[place.name] = compress(
                get_weight(loaded.model, place.name).float(),
                spec,
                None,
                self.sketch.dtype,
                step=None if spec.input is None else {"order": order},
            )
        self.plan = Plan(layers)
        state = loaded.model.state_dict()
        self.rest = {name: state[name].half() for name in self.sketch.rest}

    def fold(self):
        return fold_orders(self.plan, self.makers, self.weights, self.rest)

    def logits(self, folder: Path, plan, weights, rest) -> torch.Tensor:
        """Write a folder, check its size and return the logits of the loaded model."""
        write_native(
            folder,
            plan=plan,
            sketch=self.sketch,
            weights=weights,
            model=self.loaded.model,
            rest=rest,
        )
        assert (folder / WEIGHTS_FILE).stat().st_size == weight_bytes(self.sketch, plan)
        model = autocomp.load(folder, dtype=torch.float32)
        return model(TOKENS, use_cache=False).logits


def folded_sites(plan: Plan) -> set[str]:
    return {name for name, spec in plan.layers.items() if getattr(spec.input, "folded", False)}


def test_every_mlp_takes_its_order_in_front(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """To the bit, whatever the rows in front are stored as; behind a GELU too."""
    case = Shuffled(tiny_model)
    plan, weights, rest = case.fold()
    assert len(case.writers) == 2
    assert folded_sites(plan) == case.writers
    for name in case.writers:
        assert plan[name].token() == WRITER.replace("shuffle", "shuffle-folded")
        assert weights[name].layout.name == "nm"
        assert weights[name].nbytes == case.weights[name].nbytes - 2 * case.sketch[name].shape[1]
    local = case.logits(tmp_path / "local", case.plan, case.weights, case.rest)
    assert torch.equal(case.logits(tmp_path / "folded", plan, weights, rest), local)


def test_an_order_stays_behind_what_cannot_move(tiny_of: Callable, tmp_path: Path) -> None:
    """Factors share their rows; a bypassed linear makes nothing. Nothing given is modified."""
    case = Shuffled(tiny_of("llama"), ("svd-r8",))
    plan, weights, _ = case.fold()
    assert not folded_sites(plan)
    assert all(weights[name] is weight for name, weight in case.weights.items())
    case = Shuffled(tiny_of("qwen2"))
    before = {
        (name, local): tensor.clone()
        for name, weight in case.weights.items()
        for local, tensor in weight.tensors.items()
    }
    case.fold()
    for (name, local), tensor in before.items():
        assert torch.equal(case.weights[name].tensors[local], tensor)
    del case.weights["model.layers.0.mlp.gate_proj"]
    assert folded_sites(case.fold()[0]) == {"model.layers.1.mlp.down_proj"}


@pytest.mark.parametrize(
    "token",
    [
        "dense",
        "rtn-w3g8",
        "hqq-w4g8",
        "wanda-s50-variant",
        "sparsegpt-2:4+gptq-w4g8",
        "actorder+gptq-w3g8",
        "quip-w3",
    ],
)
def test_rows_move_to_the_bit(token: str) -> None:
    weight, stats = site()
    found = compress(weight, LayerSpec.parse(token), stats, "float16")
    rows = torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))
    moved = reordered(found, rows)
    assert moved is not None
    moved.check()
    assert moved.layout == found.layout
    assert torch.equal(moved.to_dense(), found.to_dense()[rows])


@pytest.mark.parametrize("token", ["svd-r8", "quip-w3-p1-orthogonal", "wanda-2:4+lorc-r4"])
def test_rows_that_share_what_they_are_stored_by_stay(token: str) -> None:
    weight, stats = site()
    found = compress(weight, LayerSpec.parse(token), stats, "float16")
    assert reordered(found, torch.arange(len(weight)).flip(0)) is None
