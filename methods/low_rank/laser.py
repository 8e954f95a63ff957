"""LASER: the best low-rank weight of a few chosen layers, for quality and not for size."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.dense import Dense
from autocomp.methods._low_rank import FactorMethod, output_basis, project

S = TypeVar("S", bound=Hashable)
O = TypeVar("O")  # noqa: E741 (an option)


@dataclass(frozen=True, slots=True)
class LaserSpec:
    """Rank reduction by a share of the full rank: ``laser-k10``, ``laser-k2.5``.

    Token: ``laser-k<percent of the full rank kept>``.

    Args:
        kept_percent: The paper's ρ in percent: how many of the min(out, in) singular values stay.
    """

    method: ClassVar[str] = "laser"
    slot: ClassVar[str] = "factor"

    kept_percent: float

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.kept_percent <= 100:
            raise PlanError(f"laser: the share must lie in (0, 100], got {self.kept_percent:g}.")

    def rank_for(self, shape: tuple[int, int]) -> int:
        """Return the rank for a (out, in) weight: ``⌊ρ min(out, in)⌋``, at least 1."""
        return max(1, int(self.kept_percent * min(shape) / 100))

    def token(self) -> str:
        """Return the canonical token."""
        return f"laser-k{self.kept_percent:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"laser-k(\d+(?:\.\d+)?)", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected laser-k<percent of the rank>, such as laser-k10."
            )
        return cls(float(found[1]))


class Laser(FactorMethod):
    """``W_k = U_k S_k V_kᵀ`` with ``k = ⌊ρ min(out, in)⌋``, of one or a few matrices of a model.

    The paper keeps the product as a dense matrix. Here it counts as what it ships in: two factors
    where ``k (out + in) < out · in``, where they are smaller, and else the dense weight (out, in),
    whose lower rank saves nothing. Which matrices, and which ρ, is the search's to choose on the
    user's metric, or that of :func:`select`.

    Reference:
        Sharma, Ash and Misra 2023, The Truth is in There, https://arxiv.org/abs/2312.13558
    """

    spec: ClassVar[type[LaserSpec]] = LaserSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "rank reduction of chosen layers, as factors only where these pay"
    reference: ClassVar[str] = "https://arxiv.org/abs/2312.13558"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    formats: ClassVar[tuple[str, ...]] = ("factors", "dense")

    def factors(
        self, weight: Tensor, spec: LaserSpec, stats: Stats | None
    ) -> tuple[Tensor, Tensor]:
        """Return A (out, k) and B (k, in), fp32; of ``stats`` only the cache is used."""
        basis = output_basis(weight, stats, whitened=False)
        return project(weight, basis, spec.rank_for((weight.shape[0], weight.shape[1])))

    def layout(self, spec: LaserSpec, shape: tuple[int, int], dtype: str) -> Format:
        """Return the smaller of factors and dense weight, from the shape (out, in) alone."""
        factors = super().layout(spec, shape, dtype)
        dense = Dense(shape, dtype)
        return factors if factors.nbytes < dense.nbytes else dense

    def compress(
        self, weight: Tensor, spec: LaserSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return the rank-reduced weight in ``dtype``; ``weight`` is (out, in), fp32."""
        layout = self.layout(spec, (weight.shape[0], weight.shape[1]), dtype)
        if isinstance(layout, Dense):
            return layout.pack(torch.matmul(*self.factors(weight, spec, stats)))
        return super().compress(weight, spec, stats, dtype)


def select(
    candidates: Mapping[S, Sequence[O]], score: Callable[[Mapping[S, O]], float]
) -> dict[S, O]:
    """Return the reductions that a greedy pass keeps, the latest layers first.

    Every candidate of a matrix is scored beside what is kept so far; the best is kept if it beats
    the score so far, so the score never falls. With many candidates the best score is high by
    chance too: score on validation examples, and report on others.

    Args:
        candidates: Options by site, in model order.
        score: Returns the quality, higher is better, of a model with these options and no others.

    Returns:
        The kept options by site; empty when none improves the unchanged model.
    """
    kept: dict[S, O] = {}
    reached = score(kept)
    for site, options in reversed(list(candidates.items())):
        tried = [(score({**kept, site: option}), option) for option in options]
        best, option = max(tried, key=lambda pair: pair[0], default=(reached, None))
        if option is not None and best > reached:
            kept[site], reached = option, best
    return kept
