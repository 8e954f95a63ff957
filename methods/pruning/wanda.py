"""Wanda: prune by weight times input norm, row by row."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._masks import MaskMethod, wanda_score

VARIANT = "-variant"


@dataclass(frozen=True, slots=True)
class WandaSpec(MaskSpec):
    """Keep the largest ``|w|·‖x‖`` of each row: ``wanda-s50``, ``wanda-2:4``.

    Token: ``wanda-s<percent>[-variant]`` or ``wanda-<keep>:<m>``.

    Args:
        variant: Every row loses the same share of the sum of its scores, not of its weights; not
            for patterns.
    """

    method: ClassVar[str] = "wanda"

    variant: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        MaskSpec.__post_init__(self)
        if self.variant and self.sparsity is None:
            raise PlanError(f"wanda: the variant is for a sparsity, not for {self.keep}:{self.m}.")

    def token(self) -> str:
        """Return the canonical token."""
        return MaskSpec.token(self) + (VARIANT if self.variant else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = super(WandaSpec, cls).parse(text.removesuffix(VARIANT))
        return replace(found, variant=True) if text.endswith(VARIANT) else found


class Wanda(MaskMethod):
    """Score ``|W_ij| · sqrt(E[x_j²])``: its square is the output error of dropping w alone.

    Exactly ``⌊in·s⌋`` weights of each row go, or ``m − keep`` of every ``m``; the others keep
    their values.

    In the variant each row of a weight (out, in) loses its smallest scores as long as these sum
    to at most a share α of the row's total, with one α for the matrix. The published code bisects
    α until the sparsity is met to 0.001. Here exactly ``⌊out·in·s⌋`` weights go: with the share
    ``c_ij = Σ_{k: M_ik ≤ M_ij} M_ik / Σ_k M_ik`` of a weight of score ``M_ij``, those of the
    smallest c in the matrix, which are the ones that the least such α would let go.

    Reference:
        Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models,
        https://arxiv.org/abs/2306.11695
    """

    spec: ClassVar[type[WandaSpec]] = WandaSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "keep the largest weight times input norm of each row"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.11695"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.NORMS})

    def by_row(self, spec: WandaSpec) -> bool:
        """Return whether rows lose equally many weights: not in the variant."""
        return not spec.variant

    def score(self, weight: Tensor, spec: WandaSpec, stats: Stats | None) -> Tensor:
        """Return the score (out, in) fp32, in the variant the shares c, fp64.

        Raises:
            PlanError: If the input norms (in,) are missing.
        """
        score = wanda_score(weight, require(stats, "norms", "wanda", weight.shape[1]))
        return cumulative_shares(score) if spec.variant else score


def cumulative_shares(score: Tensor) -> Tensor:
    """Return what share of a row's sum its scores up to each one make up, (out, in) fp64.

    Args:
        score: (out, in), none below 0; of equal scores the leftmost come first.
    """
    ordered, index = score.double().sort(dim=1, stable=True)
    reached = ordered.cumsum(dim=1)
    total = reached[:, -1:]
    shares = reached / torch.where(total == 0, 1.0, total)
    return torch.empty_like(shares).scatter_(1, index, shares)
