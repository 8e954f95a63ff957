"""DSnoT: a mask's weights swapped one for one until each row's mean error is gone."""

import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._masks import wanda_score

CYCLES = 50
SMALLEST_SHARE = 1e-6
PASSES = 20


@dataclass(frozen=True, slots=True)
class DsnotSpec:
    """How long weights are swapped: ``wanda-s60+dsnot``, ``sparsegpt-2:4+dsnot-c20``.

    Token: ``dsnot[-c<cycles>][-t<percent>]``.

    Args:
        cycles: Swaps of each row at most; 50, which is not written, as in the paper.
        threshold_percent: A row whose mean error is at most this share of the mean magnitude of
            its output is left alone; 0, which is not written, swaps while there is any.
    """

    method: ClassVar[str] = "dsnot"
    slot: ClassVar[str] = "refinement"

    cycles: int = CYCLES
    threshold_percent: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.cycles < 1:
            raise PlanError(f"dsnot: at least one cycle, got {self.cycles}.")
        if self.threshold_percent < 0:
            raise PlanError(f"dsnot: a threshold of at least 0, got {self.threshold_percent}.")

    def token(self) -> str:
        """Return the canonical token."""
        cycles = "" if self.cycles == CYCLES else f"-c{self.cycles}"
        threshold = f"-t{self.threshold_percent:g}" if self.threshold_percent else ""
        return f"dsnot{cycles}{threshold}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"dsnot(?:-c(\d+))?(?:-t(\d+(?:\.\d+)?))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected dsnot[-c<cycles>][-t<percent>], such as "
                "dsnot-c20 or dsnot-t1."
            )
        cycles, threshold = found.groups()
        return cls(int(cycles or CYCLES), float(threshold or 0))


class Dsnot:
    """Swaps a removed weight for a kept one while the row's mean error ``ε`` is too large.

    ``D_ij = W_ij E[x_j]`` is what a weight adds to the mean output, so ``ε_i = Σ D_ij`` over what
    a mask (out, in) removes is what the row lacks on average. Each cycle, of every row,

    * *grows* the removed weight whose ``D / Var[x_j]`` has the sign of ε and is largest,
    * *prunes* the kept weight whose D has the other sign and whose ``|W_ij| ‖x_j‖`` is least; in
      an N:M mask the one of least ``|W_ij| ‖x_j‖`` in the pattern of what was grown,

    and ``ε ← ε + D_pruned − D_grown``. A weight moves once. A row stops when ``|ε|`` is within the
    threshold, when it has nothing left to grow or to prune, and at the first swap that would not
    bring ε nearer to 0. Weights keep their values; those of an adaptive mask are updated anew.

    The paper goes on past 0 where there are no patterns, and stops at a change of sign where there
    are. Its threshold, 0.1, is in units of an input summed over 2,048 tokens, which is next to
    none: on a small model its swaps then make the output error of ``wanda-s50`` 3.9 times as
    large, while those that bring ε nearer to 0 take 11 % off it (``studies/layer-errors``). The
    paper swaps in the linears of the attention alone; here that is a matter of the plan.

    Reference:
        Zhang et al. 2023, Dynamic Sparse No Training, https://arxiv.org/abs/2310.08915
    """

    scope: ClassVar[Scope] = "refinement"
    spec: ClassVar[type[DsnotSpec]] = DsnotSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "swap weights of a mask until the mean error of each row is gone"
    reference: ClassVar[str] = "https://arxiv.org/abs/2310.08915"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.NORMS, Needs.MEAN})
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def needs_of(self, spec: DsnotSpec) -> frozenset[Needs]:
        """Return the sample too where a threshold needs the magnitude of the output."""
        return frozenset({Needs.SAMPLE}) if spec.threshold_percent else frozenset()

    def passes(self, spec: DsnotSpec) -> int:
        """Return how many times ordering what is swapped goes over the weight, as measured."""
        return PASSES

    @torch.no_grad()
    def refine(
        self,
        weight: Tensor,
        keep: Tensor,
        mask: MaskSpec,
        spec: DsnotSpec,
        stats: Stats | None,
    ) -> Tensor:
        """Return the refined mask (out, in) bool; rows and patterns keep their counts.

        Raises:
            PlanError: If norms or means (in,) of the input are missing, or the sample for a
                threshold.
        """
        width = weight.shape[1]
        mean = require(stats, "mean", "dsnot", width)
        norms = require(stats, "norms", "dsnot", width)
        squares = norms.square()
        variance = torch.maximum(squares - mean.square(), SMALLEST_SHARE * squares)
        variance = torch.where(variance == 0, 1.0, variance)
        limit = weight.new_zeros(len(weight))
        if spec.threshold_percent:
            outputs = require(stats, "sample", "dsnot", width) @ weight.T
            limit = spec.threshold_percent / 100 * outputs.abs().mean(dim=0)
        swaps = _Swaps.of(weight * mean, variance, wanda_score(weight, norms), keep, mask.m)
        for _ in range(spec.cycles):
            if not swaps.turn(limit):
                break
        return swaps.keep


class _Queues(NamedTuple):
    """Weights of every row in the order in which they are taken, for an ε above and below 0.

    Args:
        order: (2, out, n) int64.
        length: (2, out), how many of them there are.
    """

    order: Tensor
    length: Tensor

    @classmethod
    def of(cls, key: Tensor, sides: Tensor) -> "_Queues":
        """Queue what each of two masks ``sides`` (2, out, in) holds by ascending ``key``."""
        keys = key.masked_fill(~sides, torch.inf)
        return cls(keys.sort(dim=2, stable=True).indices, sides.sum(dim=2))

    def head(self, side: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight number ``turn`` (out,) of a side's queue, and whether there is one."""
        rows = torch.arange(len(side), device=side.device)
        last = self.order.shape[2] - 1
        return self.order[side, rows, turn.clamp_max(last)], turn < self.length[side, rows]


class _Swaps:
    """The mask of every row, its mean error, and how far its queues have been used up.

    Args:
        gain: D, (out, in).
        error: ε, (out,).
        keep: The mask, (out, in) bool.
        grown: Removed weights with the sign of ε, the largest ``D / Var[x]`` first.
        pruned: Kept weights of the other sign, the smallest score first; not for patterns.
        score: (out, in), infinite where a weight may not be pruned.
        m: Pattern length, or ``None``.
    """

    def __init__(
        self, gain: Tensor, keep: Tensor, score: Tensor, m: int | None, queues: tuple[_Queues, ...]
    ) -> None:
        self.gain = gain
        self.error = gain.masked_fill(keep, 0.0).sum(dim=1)
        self.keep = keep.clone()
        self.score = score.masked_fill(~keep, torch.inf)
        self.m = m
        self.grown, self.pruned = queues
        self.active = torch.ones_like(self.error, dtype=torch.bool)
        self.turns = torch.zeros((2, len(gain)), dtype=torch.int64, device=gain.device)
        self.rows = torch.arange(len(gain), device=gain.device)

    @classmethod
    def of(
        cls, gain: Tensor, variance: Tensor, score: Tensor, keep: Tensor, m: int | None
    ) -> "_Swaps":
        """Return the start; ``variance`` is (in,), the rest as in the class."""
        signs = torch.stack([gain > 0, gain < 0])
        grown = _Queues.of(-(gain / variance).abs(), signs & ~keep)
        pruned = _Queues.of(score, signs.flip(0) & keep)
        return cls(gain, keep, score, m, (grown, pruned))

    def turn(self, limit: Tensor) -> bool:
        """Swap one weight of every row that goes on; ``limit`` is (out,). False when none did."""
        side = (self.error < 0).to(torch.int64)
        turn = self.turns[side, self.rows]
        grown, found = self.grown.head(side, turn)
        pruned, partner = self._partner(side, turn, grown)
        error = self.error + self.gain[self.rows, pruned] - self.gain[self.rows, grown]
        self.active &= found & partner & (self.error.abs() > limit)
        self.active &= error.abs() < self.error.abs()
        rows = self.active.nonzero()[:, 0]
        self.keep[rows, grown[rows]] = True
        self.keep[rows, pruned[rows]] = False
        self.score[rows, pruned[rows]] = torch.inf
        self.error = torch.where(self.active, error, self.error)
        self.turns[side, self.rows] += 1
        return bool(len(rows))

    def _partner(self, side: Tensor, turn: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is pruned for what is grown, (out,), and whether there is anything."""
        if self.m is None:
            return self.pruned.head(side, turn)
        patterns = self.score.view(len(grown), -1, self.m)
        least, place = patterns[self.rows, grown // self.m].min(dim=1)
        return grown // self.m * self.m + place, least.isfinite()
