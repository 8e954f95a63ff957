"""The column solver behind GPTQ and SparseGPT: rounding and pruning with error feedback.

Columns are visited one after another. The error that rounding or pruning leaves in a column is
moved into the columns not yet visited, in the proportion that costs the layer's output least:
with ``H⁻¹ = Uᵀ U`` (U upper triangular), ``e_j = w_j − q_j`` and ``w_k ← w_k − e_j U_jk / U_jj``
for every ``k > j``.

Reference:
    Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323
    Frantar and Alistarh 2023, SparseGPT, https://arxiv.org/abs/2301.00774
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Stats
from autocomp.methods._float import FloatGrid
from autocomp.methods._hessian import cholesky, require
from autocomp.methods._masks import drop_smallest, removed
from autocomp.methods._uniform import AffineGrid

DAMPING = 0.01
STRIP = 128
CHUNK = 32
STACKED_ROWS = 2048
"""Rows that are rounded together: enough to hide the cost of a step, few enough for a cache."""


@dataclass(frozen=True, slots=True)
class ColumnFactor:
    """The factor of ``H⁻¹`` in the order in which columns are visited.

    Args:
        order: (in,) int64, the column visited at each step.
        dead: (in,) bool, inputs that are always zero, in visiting order.
        lower: (in, in), ``(U_jk / U_jj)ᵀ``, unit lower triangular: row k says what column k
            receives.
        pivots: (in,), ``U_jj``.
    """

    order: Tensor
    dead: Tensor
    lower: Tensor
    pivots: Tensor

    @classmethod
    def of(
        cls,
        hessian: Tensor,
        act_order: bool,
        dtype: torch.dtype = torch.float32,
        last: Tensor | None = None,
    ) -> Self:
        """Return the factor of a matrix of second moments, computed in fp64.

        ``0.01 · mean(diag H)`` is added to the diagonal, in which dead inputs count as 1. With J
        the reversal of the order and ``J H J = L Lᵀ``, ``U = J L⁻¹ J``.

        Args:
            hessian: (in, in), ``H = E[x xᵀ]``.
            act_order: Visit columns by decreasing ``diag H`` instead of left to right.
            dtype: Dtype of ``lower`` and ``pivots``.
            last: (in,) bool, columns visited after all others.

        Raises:
            NumericalError: If H is not finite or cannot be made positive definite.
        """
        matrix = hessian.double()
        diagonal = matrix.diagonal()
        dead = diagonal == 0
        order = torch.arange(len(diagonal), device=matrix.device)
        if act_order:
            order = torch.sort(diagonal, descending=True, stable=True).indices
        if last is not None:
            order = torch.cat([order[~last[order]], order[last[order]]])
        backwards = order.flip(0)
        matrix = matrix[backwards][:, backwards]
        matrix.diagonal()[dead[backwards]] = 1.0
        factor = cholesky(matrix, DAMPING)
        pivots = 1.0 / factor.diagonal()
        unit = torch.linalg.solve_triangular(
            factor * pivots, torch.eye(len(order)).to(factor), upper=False, unitriangular=True
        )
        lower = unit.flip(0, 1).T.to(dtype).contiguous()
        return cls(order, dead[order], lower, pivots.flip(0).to(dtype))

    @classmethod
    def shared(cls, stats: Stats | None, act_order: bool, method: str, inputs: int) -> Self:
        """Return the factor of a site, computed once for all its specs and the sites beside it.

        Raises:
            PlanError: If there is no Hessian of ``inputs`` inputs.
        """
        hessian = require(stats, "hessian", method, inputs)
        assert stats is not None
        key = f"column_factor/{'act_order' if act_order else 'natural_order'}"
        with stats.derived.setdefault("column_factor/lock", Lock()):  # one worker makes it
            if key not in stats.derived:
                stats.derived[key] = cls.of(hessian, act_order)
        factor: Self = stats.derived[key]
        return factor


class GroupFit(NamedTuple):
    """Grids that are taken of a group's weights when the solver reaches it, not in advance.

    Args:
        size: Consecutive inputs of a group.
        bits: Bits a code.
        fit: ``fit(values, columns)`` returns scale and zero point, each (out,) in the dtype of the
            values, for the group's weights as changed so far, (out, size), and its inputs.
    """

    size: int
    bits: int
    fit: Callable[[Tensor, slice], tuple[Tensor, Tensor]]

    @property
    def levels(self) -> int:
        """The largest code."""
        return 2**self.bits - 1


class _Stacked(NamedTuple):
    """The grids of several weights, one below another.

    Args:
        scale: (out, groups).
        zero: (out, groups).
        levels: (out,), the largest code of each row.
    """

    scale: Tensor
    zero: Tensor
    levels: Tensor

    @classmethod
    def of(cls, weights: Sequence[Tensor], grids: Sequence[AffineGrid]) -> Self:
        """Return the grids of all rows, in order."""
        levels = [
            weight.new_full((len(weight),), grid.levels)
            for weight, grid in zip(weights, grids, strict=True)
        ]
        scale = torch.cat([grid.scale for grid in grids])
        zero = torch.cat([grid.zero for grid in grids])
        return cls(scale, zero, torch.cat(levels))


class Solved(NamedTuple):
    """What the solver returns.

    Args:
        weight: (out, in), rounded and pruned, or as it was when visited where it is spared.
        codes: (out, in) uint8, or ``None`` without a grid.
        keep: (out, in) bool, or ``None`` without a mask.
        loss: ``½ tr(D H Dᵀ)``, the damped H and the change D of the weight (dead columns aside).
    """

    weight: Tensor
    codes: Tensor | None
    keep: Tensor | None
    loss: float


def check_strip(prune: MaskSpec, strip: int = STRIP) -> None:
    """Check that no pattern straddles two strips.

    Raises:
        PlanError: If ``m`` does not divide the strip.
    """
    if prune.m is not None and strip % prune.m:
        raise PlanError(
            f"{prune.token()}: the column solver works on strips of {strip} columns; choose a "
            f"pattern length that divides {strip}."
        )


@torch.no_grad()
def solve_columns(
    weight: Tensor,
    factor: ColumnFactor,
    *,
    keep: Tensor | None = None,
    prune: MaskSpec | None = None,
    grid: AffineGrid | FloatGrid | GroupFit | None = None,
    spare: Tensor | None = None,
    strip: int = STRIP,
) -> Solved:
    """Round and/or prune a weight column by column, moving each column's error into later ones.

    Errors are gathered, not scattered, on three levels: a strip of columns first receives the
    errors of all strips before it in one matrix product, a chunk of it those of the strip, a
    column those of the chunk.

    Args:
        weight: (out, in), not modified; the result is computed in its dtype.
        factor: Factor of the inverse second moments, and the visiting order.
        keep: (out, in) bool, a fixed mask.
        prune: A mask chosen on the way by the score ``w²/U_jj²`` of the weights compensated so
            far: with an exact count a strip over all rows, or N:M (which asks for the natural
            order).
        grid: Static grids, all taken of the original weight; or how they are taken on the way,
            which asks for the natural order; ``None`` leaves values unrounded. Of floating-point
            numbers only the rounded weight is returned, no codes.
        spare: (out, in) bool, weights that are rounded but lose nothing by it, since they are also
            stored apart; for rounded weights only.
        strip: Columns a strip; a multiple of ``prune.m``.

    Raises:
        PlanError: If a pattern would straddle two strips.
    """
    work = _Work(weight, factor, keep, prune, grid)
    if spare is not None:
        work.spare(spare)
    _visit(work, prune, grid, strip)
    return work.solved()


@torch.no_grad()
def round_columns(
    weights: Sequence[Tensor], factor: ColumnFactor, grids: Sequence[AffineGrid]
) -> list[Tensor]:
    """Return the codes, (out, in) uint8, of weights on static grids, as ``solve_columns`` does.

    The weights read the same input: several linears, or one at several widths. As a row has no
    part in what becomes of another, all are rounded in one run, one below another, and share the
    steps that a column takes.

    Args:
        weights: Each (out, in), not modified.
        factor: Factor of the inverse second moments of that input, and the visiting order.
        grids: A grid each, with equally many groups a row.
    """
    grid = _Stacked.of(weights, grids)
    work = _Work(torch.cat(list(weights)), factor, None, None, grid)
    _visit(work, None, grid, STRIP)
    return list(work.codes().split([len(weight) for weight in weights]))


def _visit(
    work: "_Work",
    prune: MaskSpec | None,
    grid: "AffineGrid | FloatGrid | _Stacked | GroupFit | None",
    strip: int,
) -> None:
    """Round and prune all columns."""
    value, error, lower = work.value, work.error, work.factor.lower
    columns = len(value)
    chunk = CHUNK
    if prune is not None and prune.m is not None:
        check_strip(prune, strip)
        chunk = prune.m
    if isinstance(grid, GroupFit):
        chunk = grid.size
        strip = max(chunk, strip // chunk * chunk)
    for start in range(0, columns, strip):
        stop = min(start + strip, columns)
        if start:
            value[start:stop].addmm_(lower[start:stop, :start], error[:start], alpha=-1)
        if prune is not None and prune.sparsity is not None:
            work.prune(start, stop, removed(value[start:stop].numel(), prune.sparsity))
        for low in range(start, stop, chunk):
            high = min(low + chunk, stop)
            if low > start:
                value[low:high].addmm_(lower[low:high, start:low], error[start:low], alpha=-1)
            if prune is not None and prune.keep is not None:
                work.prune(low, high, chunk - prune.keep, by_row=True)
            if isinstance(grid, GroupFit):
                work.fit(grid, low, high)
            for column in range(low, high):
                if column > low:
                    work.values[column].addmv_(
                        error[low:column].T, lower[column, low:column], alpha=-1
                    )
                work.settle(column)


class _Work:
    """Buffers of one run, (in, out) in visiting order: a column of the weight is contiguous."""

    def __init__(
        self,
        weight: Tensor,
        factor: ColumnFactor,
        keep: Tensor | None,
        prune: MaskSpec | None,
        grid: AffineGrid | FloatGrid | _Stacked | GroupFit | None,
    ) -> None:
        self.factor = factor
        self.rounds = grid is not None
        self.value = weight.T.index_select(0, factor.order).contiguous()
        self.value[factor.dead] = 0
        self.error = torch.empty_like(self.value)
        self.kept: Tensor | None = None
        if keep is not None:
            self.kept = keep.T.index_select(0, factor.order).to(weight.dtype).contiguous()
        elif prune is not None or grid is None:
            self.kept = torch.ones_like(self.value)
        self.values, self.errors = self.value.unbind(), self.error.unbind()
        self.masks = () if self.kept is None else self.kept.unbind()
        self.extra: Tensor | None = None
        self.numbers = grid.numbers if isinstance(grid, FloatGrid) else None
        if grid is None:
            return
        self.levels = 0 if isinstance(grid, FloatGrid) else grid.levels  # floats have none
        self.rounded = torch.empty_like(self.value)
        self.steps = self.rounded.unbind()
        if isinstance(grid, GroupFit):
            self.scale = weight.new_ones(weight.shape[1] // grid.size, weight.shape[0])
            self.zero = torch.zeros_like(self.scale)
        else:
            self.scale = grid.scale.T.to(weight.dtype).contiguous()
            self.zero = grid.zero.T.to(weight.dtype).contiguous()
        self.group = factor.order // (weight.shape[1] // len(self.scale))
        self.groups = self.group.tolist()
        self.grids = [self._sides(index) for index in range(len(self.scale))]

    def _sides(self, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return a group's scale, the least and the largest step, and what zero points lack."""
        scale, zero = self.scale[group], self.zero[group]
        whole = zero.round()
        lack = zero - whole
        return scale, -whole, self.levels - whole, lack if bool(lack.any()) else None

    def spare(self, mask: Tensor) -> None:
        """Let weights (out, in) keep their values beside their codes."""
        self.spared = mask.T.index_select(0, self.factor.order).to(self.value.dtype).unbind()
        self.extra = torch.zeros_like(self.value)
        self.extras = self.extra.unbind()

    def fit(self, grid: GroupFit, low: int, high: int) -> None:
        """Take the grid of a group of its values as they are now."""
        group = low // grid.size
        self.scale[group], self.zero[group] = grid.fit(self.value[low:high].T, slice(low, high))
        self.grids[group] = self._sides(group)

    def prune(self, low: int, high: int, count: int, by_row: bool = False) -> None:
        """Drop the ``count`` smallest scores of some columns, over all rows or of each row."""
        assert self.kept is not None
        score = self.value[low:high].square().div_(self.factor.pivots[low:high, None].square())
        keep = drop_smallest(score.T.contiguous() if by_row else score.view(1, -1), count)
        self.kept[low:high] = keep.T if by_row else keep.view_as(score)

    def settle(self, column: int) -> None:
        """Round and prune one column; what is lost becomes its error."""
        value, error = self.values[column], self.errors[column]
        if not self.rounds:
            torch.addcmul(value, value, self.masks[column], value=-1, out=error)
            return
        scale, low, high, lack = self.grids[self.groups[column]]
        step = torch.div(value, scale, out=self.steps[column])
        if self.numbers is not None:
            step.copy_(self.numbers.nearest(step))
        elif lack is None:
            step.round_().clamp_(low, high)
        else:
            step.add_(lack).round_().clamp_(low, high).sub_(lack)
        if self.masks:
            step.mul_(self.masks[column])
        torch.addcmul(value, step, scale, value=-1, out=error)
        if self.extra is not None:
            error.sub_(torch.mul(error, self.spared[column], out=self.extras[column]))

    def solved(self) -> Solved:
        """Return the result in the layout of the weight."""
        pivots = self.factor.pivots[:, None]
        loss = 0.5 * float((self.error / pivots).square().sum())
        if not self.rounds:
            weight, codes = self.value - self.error, None
        else:
            weight = self.rounded * self.scale[self.group]
            if self.extra is not None:
                weight += self.extra
            codes = None if self.numbers is not None else self.codes()
        keep = None if self.kept is None else self._restore(self.kept).to(torch.bool)
        return Solved(self._restore(weight), codes, keep, loss)

    def codes(self) -> Tensor:
        """Return the codes, (out, in) uint8."""
        codes = (self.rounded + self.zero[self.group]).round_()
        return self._restore(codes.to(torch.uint8))

    def _restore(self, columns: Tensor) -> Tensor:
        """Return (in, out) in visiting order as (out, in) in the original order."""
        restored = torch.empty_like(columns)
        restored[self.factor.order] = columns
        return restored.T.contiguous()
