"""Folding changes what is stored, not what is computed."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import autocomp
from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.cost import native_infos, weight_bytes
from autocomp.formats.base import CompressedWeight
from autocomp.formats.dense import Dense
from autocomp.layers import write_native
from autocomp.layers.fold import fold
from autocomp.layers.native import WEIGHTS_FILE
from autocomp.models import LoadedModel
from autocomp.models.producers import Producer, producers
from autocomp.models.structure import structure
from autocomp.models.weights import get_weight

TOKENS = torch.arange(3, 43).reshape(2, 20)
compress = load_object("autocomp.methods.compose:compress")

Draw = Callable[[int, torch.Generator], Tensor]


def powers_of_two(count: int, generator: torch.Generator) -> Tensor:
    """1, ½ or ¼: what is divided by them stays exact in any floating dtype."""
    return 0.5 ** torch.randint(3, (count,), generator=generator)


def between_half_and_two(count: int, generator: torch.Generator) -> Tensor:
    return 2 ** (2 * torch.rand(count, generator=generator) - 1)


class Prepared:
    """A tiny model whose linears all have input scales, equal where they read the same input."""

    def __init__(
        self, loaded: LoadedModel, draw: Draw, token: str = "awq+rtn-w4g16", tied: bool = True
    ) -> None:
        self.loaded, self.sketch = loaded, loaded.sketch
        self.makers: Mapping[str, Producer] = producers(structure(loaded.model))
        generator = torch.Generator().manual_seed(0)
        self.scales: dict[str, Tensor] = {}
        specs, self.weights = {}, {}
        for site in self.sketch.sites:
            specs[site.name] = LayerSpec.parse(token if site.kind == "linear" else "dense")
        for site in self.sketch.weights():
            maker = self.makers.get(site.reads)
            if site.kind == "linear" and site.reads not in self.scales:
                rows = torch.arange(site.shape[1])
                if tied and maker is not None:
                    rows = maker.rows
                self.scales[site.reads] = draw(int(rows.max()) + 1, generator)[rows]
            self.weights[site.name] = compress(
                get_weight(loaded.model, site.name).float(),
                specs[site.name],
                None,
                self.sketch.dtype,
                step={"scale": self.scales[site.reads].half()} if site.kind == "linear" else None,
            )
        self.plan = Plan(specs)
        state = loaded.model.state_dict()
        self.rest = {name: state[name].half().float() for name in self.sketch.rest}

    def fold(self) -> tuple[Plan, dict[str, CompressedWeight], dict[str, Tensor]]:
        return fold(self.plan, self.sketch, self.makers, self.weights, self.rest)

    def logits(
        self,
        folder: Path,
        plan: Plan,
        weights: Mapping[str, CompressedWeight],
        rest: Mapping[str, Tensor],
    ) -> Tensor:
        """Write a folder, check its size and return the fp32 logits of the loaded model."""
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

    def both(self, folder: Path) -> tuple[Tensor, Tensor]:
        """Return the logits of the local and of the folded form."""
        return (
            self.logits(folder / "local", self.plan, self.weights, self.rest),
            self.logits(folder / "folded", *self.fold()),
        )


def folded_sites(plan: Plan) -> set[str]:
    return {name for name, spec in plan.layers.items() if getattr(spec.input, "folded", False)}


def test_powers_of_two_fold_without_a_trace(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """To the bit, in every family; but ``1 + w`` of Gemma's norms is rounded as w."""
    case = Prepared(tiny_model, powers_of_two)
    plan, weights, _ = case.fold()
    linears = {site.name for site in case.sketch.sites if site.kind == "linear"}
    assert folded_sites(plan) == linears & {n for m in case.makers.values() for n in m.readers}
    for name in folded_sites(plan):
        assert plan[name].token() == "awq-folded+rtn-w4g16"
        assert weights[name].layout.name == "uniform"
    local, folded = case.both(tmp_path)
    if any(maker.offset for maker in case.makers.values()):
        # Every norm is off by 2⁻¹¹ of a number around 4 at most; four norms in a row.
        assert float((folded - local).norm() / local.norm()) < 4 * 2**-9
    else:
        assert torch.equal(folded, local)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt"])
def test_any_scales_fold_up_to_the_rounding_of_the_producers(
    family: str, tiny_of: Callable, tmp_path: Path
) -> None:
    """Up to eight producers in a row, each of whose rows is rounded to 2⁻¹² of itself."""
    case = Prepared(tiny_of(family), between_half_and_two)
    local, folded = case.both(tmp_path)
    assert not torch.equal(folded, local)
    assert float((folded - local).norm() / local.norm()) < 8 * 2**-11


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_the_file_shrinks_by_the_vectors(family: str, tiny_of: Callable) -> None:
    case = Prepared(tiny_of(family), between_half_and_two)
    plan = case.fold()[0]
    before, after = (native_infos(case.sketch, which) for which in (case.plan, plan))
    vectors = [2 * case.sketch[name].shape[1] for name in folded_sites(plan)]
    assert len(before) - len(after) == len(vectors)
    assert sum(i.nbytes for i in before.values()) - sum(i.nbytes for i in after.values()) == sum(
        vectors
    )


def test_nothing_given_is_modified(tiny_of: Callable) -> None:
    case, same = (Prepared(tiny_of("qwen2"), between_half_and_two) for _ in range(2))
    rest = case.fold()[2]
    assert case.plan == same.plan
    for name, weight in case.weights.items():
        for local, tensor in weight.tensors.items():
            assert torch.equal(tensor, same.weights[name].tensors[local])
    changed = {name for name in rest if not torch.equal(rest[name], case.rest[name])}
    assert all(torch.equal(case.rest[name], same.rest[name]) for name in case.rest)
    attention = "model.layers.0.self_attn"
    assert f"{attention}.v_proj.bias" in changed
    assert f"{attention}.q_proj.bias" not in changed
    assert "model.layers.1.post_attention_layernorm.weight" in changed
    assert "model.norm.weight" not in changed


def test_readers_that_disagree_stay_local(tiny_of: Callable, tmp_path: Path) -> None:
    """A reader with another scale, or with none, keeps its whole group as it is."""
    case = Prepared(tiny_of("llama"), powers_of_two)
    other, bare = "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.gate_proj"
    for name, token, step in (
        (other, "awq+rtn-w4g16", {"scale": torch.ones(64).half()}),
        (bare, "rtn-w4g16", None),
    ):
        weight, spec = get_weight(case.loaded.model, name).float(), LayerSpec.parse(token)
        case.weights[name] = compress(weight, spec, None, case.sketch.dtype, step=step)
        case.plan = Plan(dict(case.plan.layers) | {name: spec})
    plan = case.fold()[0]
    local = {site.name for site in case.sketch.sites if site.kind == "linear"} - folded_sites(plan)
    assert local == {
        *(f"model.layers.0.self_attn.{role}_proj" for role in "qkv"),
        *(f"model.layers.1.mlp.{role}_proj" for role in ("gate", "up")),
    }
    assert torch.equal(*case.both(tmp_path))


def test_heads_that_share_values_have_to_agree(tiny_of: Callable) -> None:
    """Two query heads read one value head in the grouped Llama, one in GPT-2."""
    llama = Prepared(tiny_of("llama"), between_half_and_two, tied=False).fold()[0]
    assert "model.layers.0.self_attn.o_proj" not in folded_sites(llama)
    assert "model.layers.0.mlp.down_proj" in folded_sites(llama)
    gpt2 = Prepared(tiny_of("gpt2"), between_half_and_two, tied=False).fold()[0]
    assert "transformer.h.0.attn.c_proj" in folded_sites(gpt2)
    assert "transformer.h.0.mlp.c_proj" not in folded_sites(gpt2), "behind a GELU"


def test_values_that_pass_a_compressed_cache_keep_their_scale(tiny_of: Callable) -> None:
    case = Prepared(tiny_of("llama"), between_half_and_two)
    cache = {"model.layers.0.self_attn.cache": LayerSpec.parse("kivi-k4v4")}
    case.plan = Plan(dict(case.plan.layers) | cache)
    found = folded_sites(case.fold()[0])
    assert "model.layers.0.self_attn.o_proj" not in found
    assert {"model.layers.1.self_attn.o_proj", "model.layers.0.mlp.down_proj"} < found


def test_bypassed_readers_do_not_count(tiny_of: Callable) -> None:
    """In parallel blocks attention and MLP read one norm."""
    case = Prepared(tiny_of("phi"), powers_of_two)
    gone = case.sketch["model.layers.0.self_attn"]
    case.plan = Plan(dict(case.plan.layers) | {gone.name: LayerSpec.parse("bypass")})
    for name in gone.members:
        case.weights.pop(name, None)
    assert "model.layers.0.mlp.fc1" in folded_sites(case.fold()[0])


@pytest.mark.parametrize(
    ("token", "folds"),
    [
        ("dense", True),
        ("rtn-w8g16-sym", True),
        ("magnitude-s50+rtn-w4g16", True),
        ("magnitude-2:4+rtn-w4", True),
        ("awq+rtn-w4g16", True),
        ("quip-w4", True),
        ("spqr-w4", False),
        ("owq-w4-t5", False),
        ("svd-r8", False),
        ("magnitude-s50", False),
        ("rtn-w4g16+lorc-r8", False),
    ],
)
def test_which_formats_hold_divided_rows(
    token: str, folds: bool, tiny_of: Callable, tmp_path: Path
) -> None:
    """Down's scale moves into up where up is dense or on one grid."""
    case = Prepared(tiny_of("llama"), powers_of_two)
    name = "model.layers.0.mlp.up_proj"
    spec, weight = LayerSpec.parse(token), get_weight(case.loaded.model, name).float()
    step = {"scale": case.scales["model.layers.0.mlp.in"].half()} if spec.input else None
    stats = Stats(hessian=torch.eye(64))
    case.weights[name] = compress(weight, spec, stats, case.sketch.dtype, step=step)
    case.plan = Plan(dict(case.plan.layers) | {name: spec})
    assert ("model.layers.0.mlp.down_proj" in folded_sites(case.fold()[0])) is folds
    assert torch.equal(*case.both(tmp_path))


def test_what_a_dtype_cannot_hold_stays(tiny_of: Callable) -> None:
    """A norm that would sink below 2⁻²⁴, a row that would exceed 65504."""
    case = Prepared(tiny_of("llama"), powers_of_two)
    norm, up = "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.up_proj"
    case.rest[norm][3] = 2**-24
    for role in "qkv":
        case.weights[f"model.layers.0.self_attn.{role}_proj"].tensors["input.scale"][3] = 3.0
    dense = Dense(case.sketch[up].shape, case.sketch.dtype)
    case.weights[up] = dense.pack(torch.full(dense.shape, 60000.0))
    case.plan = Plan(dict(case.plan.layers) | {up: LayerSpec.parse("dense")})
    found = folded_sites(case.fold()[0])
    assert not found & {f"model.layers.0.self_attn.{role}_proj" for role in "qkv"}
    assert "model.layers.0.mlp.down_proj" not in found
    assert "model.layers.1.mlp.down_proj" in found
