"""SignRound: the roundings and clips of a block, learned from the signs of their gradient."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import BlockView, Scope
from autocomp.core.stats import Needs
from autocomp.formats.base import CompressedWeight
from autocomp.methods._learned_rounding import Rounding

BATCH_TOKENS = 1024
CHECKED_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class SignRoundSpec:
    """How long a block is tuned: ``signround-100`` takes 100 steps.

    Args:
        steps: Steps of descent a block; 0 changes nothing.
    """

    method: ClassVar[str] = "signround"
    slot: ClassVar[str] = "block"

    steps: int

    def token(self) -> str:
        """Return the canonical token."""
        return f"{self.method}-{self.steps}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token.

        Raises:
            PlanError: If the text is no token of this method.
        """
        found = re.fullmatch(rf"{cls.method}-(0|[1-9]\d*)", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected {cls.method}-<steps>, such as {cls.method}-100."
            )
        return cls(int(found[1]))


class SignRound:
    """Signed gradient descent on ``E‖f̂(x̂) − f(x)‖²`` over the roundings and clips of a block.

    f̂ is the block as compressed, on the hidden states x̂ (windows, length, hidden) that compressed
    blocks in front of it produce; f and x are the original. Step t of T moves every parameter by
    ``(1 − t/T)/T`` against the sign of its gradient on ``BATCH_TOKENS`` tokens. The parameters
    with the least loss on their tokens are kept, if ``CHECKED_TOKENS`` tokens say that they are
    better than what the layer methods made. :class:`autocomp.methods._learned_rounding.Rounding`
    says what is learned; linears without a matrix on a grid, (out, in), stay as they are.

    Reference:
        Cheng et al. 2023, Optimize Weight Rounding via Signed Gradient Descent for the
        Quantization of LLMs, https://arxiv.org/abs/2309.05516
    """

    scope: ClassVar[Scope] = "block"
    spec: ClassVar[type[SignRoundSpec]] = SignRoundSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "learn the roundings and clips of a block by signed gradient descent"
    reference: ClassVar[str] = "https://arxiv.org/abs/2309.05516"
    needs: ClassVar[frozenset[Needs]] = frozenset()

    def tokens(self, spec: SignRoundSpec) -> int:
        """Return how many tokens go forward and backward through each block."""
        return spec.steps * BATCH_TOKENS

    @torch.no_grad()
    def compress(self, view: BlockView, spec: SignRoundSpec) -> dict[str, CompressedWeight]:
        """Return the weights (out, in) that got better, in their layouts; none at 0 steps."""
        roundings = {
            name: Rounding(leaf, view.inputs[0].dtype)
            for name, site in view.sites.items()
            if (leaf := site.compressed.grid_leaf(site.weight)) is not None
        }
        if not roundings or not spec.steps or not _descend(view, roundings, spec.steps):
            return {}
        tuned = {name: rounding.operand() for name, rounding in roundings.items()}
        if _checked_loss(view, tuned) >= _checked_loss(view, {}):
            return {}
        return {name: rounding.compressed() for name, rounding in roundings.items()}


def _descend(view: BlockView, roundings: Mapping[str, Rounding], steps: int) -> bool:
    """Leave the roundings at their best; false when no loss was finite."""
    least, best = math.inf, {}
    draws = _draws(view)
    for step in range(steps):
        batch, rows = next(draws)
        weights = {
            name: rounding.operand().requires_grad_() for name, rounding in roundings.items()
        }
        with torch.enable_grad():
            loss = _loss(view, batch, rows, weights)
            gradients = torch.autograd.grad(loss, list(weights.values()))
        if loss.item() < least:
            least = loss.item()
            best = {name: rounding.state() for name, rounding in roundings.items()}
        for rounding, gradient in zip(roundings.values(), gradients, strict=True):
            rounding.descend(gradient, (1 - step / steps) / steps)
    for name, state in best.items():
        roundings[name].restore(state)
    return bool(best)


def _loss(view: BlockView, batch: int, rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the mean squared error of the block's output on some windows of a batch."""
    output = view.run(view.inputs[batch][rows], batch, weights)
    return (output.float() - view.targets[batch][rows].float()).square().mean()


def _draws(view: BlockView) -> Iterator[tuple[int, Tensor]]:
    """Yield batches and windows of them, each window once before any comes again."""
    generator = torch.Generator().manual_seed(view.seed)
    while True:
        parts = [
            (batch, part)
            for batch, hidden in enumerate(view.inputs)
            for part in torch.randperm(len(hidden), generator=generator).split(
                max(1, BATCH_TOKENS // hidden.shape[1])
            )
        ]
        for place in torch.randperm(len(parts), generator=generator).tolist():
            yield parts[place]


def _checked_loss(view: BlockView, weights: Mapping[str, Tensor]) -> float:
    """Return the mean loss on the first windows of the stream, a fixed choice."""
    total, tokens = 0.0, 0
    for batch, hidden in enumerate(view.inputs):
        size = hidden.shape[0] * hidden.shape[1]
        total += size * _loss(view, batch, torch.arange(len(hidden)), weights).item()
        tokens += size
        if tokens >= CHECKED_TOKENS:
            break
    return total / tokens
