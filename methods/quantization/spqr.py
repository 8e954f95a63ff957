"""SpQR: tiny groups with rounded statistics, and the weights that do not fit in kept apart."""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import BITS
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.bilevel import SMALLEST_STEP, Bilevel, Statistic
from autocomp.formats.outliers import Outliers
from autocomp.formats.sum import Sum
from autocomp.methods._column_solver import ColumnFactor, GroupFit, Solved, solve_columns
from autocomp.methods._masks import drop_smallest, removed
from autocomp.methods._uniform import AffineGrid

GROUP_SIZE = 16
STATISTIC_BITS = 3
BAND = 16
ROUNDS = 4


@dataclass(frozen=True, slots=True)
class SpqrSpec:
    """SpQR: ``spqr-w3-o1`` with 1 % of outliers, ``spqr-w4g32`` without any.

    Token: ``spqr-w<bits>[g<group>][-o<percent of outliers>]``.

    Args:
        bits: Bits a code, one of 2, 3, 4, 5, 6, 8.
        group_size: Consecutive inputs of a row that share a scale; 16, which is not written.
        outliers: Share of the weights that are kept in float16, in [0, 1).
    """

    method: ClassVar[str] = "spqr"
    slot: ClassVar[str] = "quantizer"

    bits: int
    group_size: int = GROUP_SIZE
    outliers: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            PlanError: If there is no such grid or share.
        """
        if self.bits not in BITS or self.group_size < 1 or not 0.0 <= self.outliers < 1.0:
            raise PlanError(
                f"spqr: bits must be one of {BITS}, the group size positive and the outliers less "
                f"than 100 %, got {self.bits}, {self.group_size} and {100 * self.outliers:g} %."
            )

    def token(self) -> str:
        """Return the canonical token."""
        group = "" if self.group_size == GROUP_SIZE else f"g{self.group_size}"
        outliers = f"-o{100 * self.outliers:g}" if self.outliers else ""
        return f"{self.method}-w{self.bits}{group}{outliers}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"spqr-w(\d+)(?:g(\d+))?(?:-o(\d+(?:\.\d+)?))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected spqr-w<bits>[g<group>][-o<percent of outliers>], "
                "such as spqr-w3-o1."
            )
        bits, group, percent = found.groups()
        return cls(int(bits), int(group or GROUP_SIZE), float(percent or 0) / 100)


class Spqr:
    """Column solver on grids of 16 inputs whose scales and zero points have 3 bits each.

    ``w ≈ s (q − z)`` with ``s = (max − min)/(2^b − 1)`` and ``z = −min/s``, any number in
    ``[0, 2^b − 1]``; 16 rows share the float16 range on which the scales of a group of inputs are
    rounded, and another one for the zero points. Exactly ``⌊rate · out · in⌋`` weights (out, in)
    are *outliers*, which leave no error: what the grid misses of them is stored beside it.

    Outliers are those without which their groups lose least: the error of a group is
    ``Σ (w − ŵ)²/U_jj²``, ``H⁻¹ = Uᵀ U``, and the gain of a weight is how much the error falls when
    the group's grid is taken of the others and this weight's error is 0. A quarter of them is
    chosen at a time, so that what hides behind a larger outlier is found.

    Where the inputs come in act-order (``actorder`` in the input slot, as in the official code),
    the grids of a group are taken of its weights as feedback has changed them; elsewhere of the
    original ones, and the columns alone are visited in act-order. The official code compares gains
    with a threshold, so that the count follows from the weights. Zero lies in every range here,
    since one far zero point would spoil those of 16 rows.

    Reference:
        Dettmers et al. 2023, SpQR, https://arxiv.org/abs/2306.03078
    """

    scope: ClassVar[Scope] = "site"
    spec: ClassVar[type[SpqrSpec]] = SpqrSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "groups of 16 with 3-bit scales and zeros, float16 outliers"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.03078"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})
    formats: ClassVar[tuple[str, ...]] = ("bilevel", "sum")

    def layout(self, spec: SpqrSpec, shape: tuple[int, int], dtype: str = "") -> Bilevel | Sum:
        """Return the layout of a weight (out, in): with outliers a sum; ``dtype`` plays no part.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        base, outliers = _parts(spec, shape)
        return Sum(shape, base, outliers) if outliers.count else base

    def grid(self, weight: Tensor, spec: SpqrSpec, stats: Stats | None = None) -> AffineGrid:
        """Return the grids that span the groups, their statistics rounded."""
        keep = torch.ones_like(weight, dtype=torch.bool)
        return _rounded(_spanned(weight, keep, spec))[0]

    def compress(
        self, weight: Tensor, spec: SpqrSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes and outliers; ``weight`` is (out, in), fp32; ``dtype`` unused.

        Raises:
            PlanError: If the Hessian is missing or the group size does not divide the inputs.
            NumericalError: If H cannot be factorised.
        """
        shape = weight.shape[0], weight.shape[1]
        layout, (inner, outliers) = self.layout(spec, shape), _parts(spec, shape)
        factor = ColumnFactor.shared(stats, True, "spqr", shape[1])
        apart = outlier_mask(weight, factor, spec)
        if bool((factor.order.diff() == 1).all()):
            solved, scale, zero = _fitted_on_the_way(weight, factor, apart, spec)
        else:
            grid, (scale, zero) = _rounded(_spanned(weight, ~apart, spec))
            solved = solve_columns(weight, factor, grid=grid, spare=apart)
        assert solved.codes is not None
        base = inner.pack(solved.codes, scale, zero)
        if not isinstance(layout, Sum):
            return base
        return layout.pack(base, outliers.pack(apart, solved.weight - base.to_dense()))


def _parts(spec: SpqrSpec, shape: tuple[int, int]) -> tuple[Bilevel, Outliers]:
    """Return the layouts of the codes and of what is kept beside them."""
    base = Bilevel(shape, spec.bits, spec.group_size, STATISTIC_BITS, BAND)
    return base, Outliers(shape, removed(shape[0] * shape[1], spec.outliers))


def outlier_mask(weight: Tensor, factor: ColumnFactor, spec: SpqrSpec) -> Tensor:
    """Return which ``⌊rate · out · in⌋`` weights (out, in) are kept apart, bool."""
    count = removed(weight.numel(), spec.outliers)
    apart = torch.zeros_like(weight, dtype=torch.bool)
    pivots = torch.empty_like(factor.pivots)
    pivots[factor.order] = factor.pivots
    for chosen in range(1, ROUNDS + 1):
        missing = count * chosen // ROUNDS - count * (chosen - 1) // ROUNDS
        if missing:
            gain = _gain(weight, apart, pivots, spec).masked_fill_(apart, -torch.inf)
            apart |= drop_smallest(gain.view(1, -1), gain.numel() - missing).view_as(apart)
    return apart


def _gain(weight: Tensor, apart: Tensor, pivots: Tensor, spec: SpqrSpec) -> Tensor:
    """Return how much the error of its group falls without each weight, (out, in).

    Only the least and the largest weight of a group change its grid by leaving.
    """
    shape = (len(weight), -1, spec.group_size)

    def errors(keep: Tensor) -> Tensor:
        error = (_spanned(weight, keep, spec).nearest(weight).sub_(weight) / pivots).square_()
        return error.masked_fill_(~keep, 0.0)

    gain = errors(~apart)
    whole = gain.view(shape).sum(dim=-1, keepdim=True)
    for sign in (1, -1):
        end = (sign * weight).masked_fill_(apart, -torch.inf).view(shape)
        leaves = torch.zeros_like(end, dtype=torch.bool)
        leaves.scatter_(-1, end.argmax(dim=-1, keepdim=True), True)
        left = errors(~apart & ~leaves.view_as(apart)).view(shape).sum(dim=-1, keepdim=True)
        gain = torch.where(leaves, whole - left, gain.view(shape))
    return gain.view_as(weight)


def _spanned(weight: Tensor, keep: Tensor, spec: SpqrSpec) -> AffineGrid:
    """Return the grids that span 0 and the kept weights of each group, zero points any number."""
    groups = (weight * keep).view(len(weight), -1, spec.group_size)
    low, high = groups.aminmax(dim=-1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / (2**spec.bits - 1)).clamp_min(SMALLEST_STEP)
    return AffineGrid(scale, -low / scale, spec.bits)


def _rounded(grid: AffineGrid) -> tuple[AffineGrid, tuple[Statistic, Statistic]]:
    """Return grids as their statistics are stored, and these."""
    scale, zero = (Statistic.fit(side, STATISTIC_BITS, BAND) for side in (grid.scale, grid.zero))
    size = scale.values(BAND).clamp_min_(SMALLEST_STEP)
    return AffineGrid(size, zero.values(BAND), grid.bits), (scale, zero)


def _fitted_on_the_way(
    weight: Tensor, factor: ColumnFactor, apart: Tensor, spec: SpqrSpec
) -> tuple[Solved, Statistic, Statistic]:
    """Solve with grids of the weights as feedback has changed them; the order is the natural."""
    found: list[tuple[Statistic, Statistic]] = []

    def fit(values: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        grid, sides = _rounded(_spanned(values, ~apart[:, columns], spec))
        found.append(sides)
        return grid.scale[:, 0], grid.zero[:, 0]

    grid = GroupFit(spec.group_size, spec.bits, fit)
    solved = solve_columns(weight, factor, grid=grid, spare=apart)
    scale, zero = (
        Statistic(*(torch.cat(parts, dim=1) for parts in zip(*side, strict=True)))
        for side in zip(*found, strict=True)
    )
    return solved, scale, zero
