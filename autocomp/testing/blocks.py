"""The contract of every method that tunes a block, as functions to call from any test runner.

``view`` makes a small block with compressed linears in every format that a plan can give them; the
``check_…`` functions raise ``AssertionError`` on a breach.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from autocomp.core.errors import PlanError
from autocomp.core.method import BlockMethod, BlockSite, BlockView
from autocomp.core.registry import METHODS, load_object
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import CompressedWeight

HIDDEN, INNER = 32, 48
BATCHES, WINDOWS, LENGTH = 2, 3, 16

# What a token of each method ends with: the usual; what changes nothing.
_OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "signround": {"valid": ("-20",), "identity": ("-0",)},
}
# A layer spec for each linear of the block; every format, and linears that no method can round.
PLANS = (
    {"gate": "gptq-w3g8", "up": "gptq-w3g8-sym", "down": "gptq-w2g8"},
    {"gate": "sparsegpt-2:4+gptq-w4g8", "up": "wanda-s50+gptq-w3g8", "down": "gptq-w3g8"},
    {"gate": "awq+gptq-w3g8", "up": "gptq-w3g8+lorc-r2", "down": "awq+gptq-w3g8+lorc-r2"},
    {"gate": "hqq-w3g8", "up": "spqr-w3g8-o3", "down": "owq-w3g8-t4"},
    {"gate": "actorder+gptq-w3g8", "up": "quip-w3", "down": "rotation-hadamard+quip-w3"},
    {"gate": "wsvd-r8+gptq-w4", "up": "wanda-s50", "down": "rotation-hadamard+rtn-w3g8"},
)


class Block(nn.Module):
    """A gated MLP with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the output, (windows, length, hidden)."""
        return hidden + self.down(nn.functional.silu(self.gate(hidden)) * self.up(hidden))


def options(name: str, kind: str) -> list[str]:
    """Return tokens of a method; ``kind`` is a key of the table of options."""
    return [name + ending for ending in _OPTIONS[name][kind]]


def view(plan: Mapping[str, str], seed: int = 0) -> BlockView:
    """Return a block compressed as a plan says, its inputs a little off the original ones.

    Args:
        plan: Token of each linear.
        seed: Seed of weights, texts and the view.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = Block().requires_grad_(False)
    generator = Generator().manual_seed(seed)
    mixing = torch.randn(HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5
    shape = (BATCHES, WINDOWS, LENGTH, HIDDEN)
    original = torch.randn(shape, generator=generator) @ mixing
    targets = block(original)
    inputs = original + 0.05 * torch.randn(shape, generator=generator)
    inner = nn.functional.silu(block.gate(inputs)) * block.up(inputs)
    seen = {"gate": inputs, "up": inputs, "down": inner}
    sites = {}
    linears = {"gate": block.gate, "up": block.up, "down": block.down}
    compress = load_object("autocomp.methods.compose:compress")
    for name, token in plan.items():
        module, spec = linears[name], LayerSpec.parse(token)
        weight = module.weight.detach().clone()
        compressed = compress(weight, spec, _stats(seen[name].flatten(0, -2)), "float16")
        sites[name] = BlockSite(weight, spec, compressed)
        operands = compressed.operands()
        module.weight.copy_(operands.weight)
        if operands.prepare is not None:
            prepare = operands.prepare
            module.register_forward_pre_hook(lambda _, args, prepare=prepare: (prepare(args[0]),))

    def run(hidden: Tensor, batch: int, weights: Mapping[str, Tensor]) -> Tensor:
        named = {f"{name}.weight": weight for name, weight in weights.items()}
        output: Tensor = functional_call(block, named, (hidden,))
        return output

    return BlockView(block, sites, list(inputs), list(targets), run, seed)


def _stats(rows: Tensor) -> Stats:
    """Return the statistics of inputs (tokens, in)."""
    hessian = rows.T @ rows / len(rows)
    return Stats(
        tokens=len(rows),
        hessian=hessian,
        norms=hessian.diagonal().sqrt(),
        mean=rows.mean(dim=0),
        absmean=rows.abs().mean(dim=0),
        absmax=rows.abs().amax(dim=0),
        sample=rows,
    )


def loss(block: BlockView, weights: Mapping[str, CompressedWeight]) -> float:
    """Return the mean squared error of a view's output with some weights in place."""
    dense = {name: weight.operands().weight for name, weight in weights.items()}
    total = 0.0
    for batch, (inputs, targets) in enumerate(zip(block.inputs, block.targets, strict=True)):
        total += float((block.run(inputs, batch, dense) - targets).square().mean())
    return total / len(block.inputs)


def compress(token: str, block: BlockView) -> dict[str, CompressedWeight]:
    """Run the method of a token on a view."""
    method = METHODS[token.partition("-")[0]]
    found: dict[str, CompressedWeight] = method().compress(block, method.spec.parse(token))
    return found


def check_applies(name: str) -> None:
    """The method fulfils its protocol, and its tokens read back; it says how far it reads."""
    method: Any = METHODS[name]
    assert isinstance(method(), BlockMethod)
    for token in options(name, "valid") + options(name, "identity"):
        spec = method.spec.parse(token)
        assert spec.token() == token
        assert method().tokens(spec) >= 0
    try:
        method.spec.parse(f"{name}-nonsense")
    except PlanError:
        return
    raise AssertionError(f"{name} reads nonsense")


def check_identity(name: str) -> None:
    """Specs that ask for nothing change nothing."""
    for token in options(name, "identity"):
        assert compress(token, view(PLANS[0])) == {}


def check_formats(name: str) -> None:
    """Layouts, bytes, masks, steps and corrections stay; what holds no grid is left alone."""
    for token in options(name, "valid"):
        for plan in PLANS:
            block = view(plan)
            for site, weight in compress(token, block).items():
                before = block.sites[site].compressed
                weight.check()
                assert weight.layout == before.layout, (plan, site)
                assert weight.nbytes == before.nbytes
                for part, tensor in before.tensors.items():
                    kept = part.rpartition(".")[2] not in ("codes", "values", "scale", "zero")
                    fixed = part.startswith(("input.", "correction.", "inner.correction."))
                    if kept or fixed:
                        assert torch.equal(weight.tensors[part], tensor), (plan, site, part)
                assert weight.grid_leaf(block.sites[site].weight) is not None, (plan, site)


def check_improves(name: str) -> None:
    """The block's output gets closer to the original's, on the text that it was tuned on."""
    for token in options(name, "valid"):
        for plan in PLANS:
            block = view(plan)
            assert loss(block, compress(token, block)) < loss(block, {}), (token, plan)


def check_pure(name: str) -> None:
    """Same seed, same bytes, whatever else draws; nothing that the view holds is changed."""
    for token in options(name, "valid"):
        block, untouched = view(PLANS[1]), view(PLANS[1])
        first = compress(token, block)
        torch.rand(3)
        again = compress(token, block)
        assert first.keys() == again.keys() != set()
        for site, weight in first.items():
            for part, tensor in weight.tensors.items():
                assert torch.equal(tensor, again[site].tensors[part]), (site, part)
        for site, kept in untouched.sites.items():
            assert torch.equal(block.sites[site].weight, kept.weight), site
            for part, tensor in kept.compressed.tensors.items():
                assert torch.equal(block.sites[site].compressed.tensors[part], tensor)
        state = untouched.block.state_dict()
        for part, tensor in block.block.state_dict().items():
            assert torch.equal(tensor, state[part]), part
        for mine, others in ((block.inputs, untouched.inputs), (block.targets, untouched.targets)):
            assert all(torch.equal(one, other) for one, other in zip(mine, others, strict=True))
        other = compress(token, replace(block, seed=1))
        assert any(
            not torch.equal(tensor, other[site].tensors[part])
            for site, weight in first.items()
            if site in other
            for part, tensor in weight.tensors.items()
        ), "the seed is not used"
