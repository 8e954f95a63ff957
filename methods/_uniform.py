"""Uniform integer grids: where they lie and how weights are rounded on them."""

from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError
from autocomp.core.method import Scope
from autocomp.core.spec import UniformSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.uniform import Uniform
from autocomp.methods._hessian import require

CLIP_STEPS = 80
CLIP_NORM = 2.4
CLIP_ROWS = 32
OUTPUT_CLIP_STEPS = 10


class AffineGrid(NamedTuple):
    """A grid for each group of a row, ``w ≈ scale · (code − zero)``.

    Args:
        scale: (out, groups) float16, positive; fp32 where it is stored otherwise.
        zero: (out, groups) uint8, the code of the value 0; fp32 where it is any number.
        bits: Bits a code.
    """

    scale: Tensor
    zero: Tensor
    bits: int

    @classmethod
    def fit(cls, weight: Tensor, spec: UniformSpec, stats: Stats | None = None) -> Self:
        """Return the grid that spans each group, or with ``mse`` or ``clip`` a clipped one.

        Asymmetric: ``scale = (max − min)/(2^b − 1)``, ``zero = round(−min/scale)`` with 0 forced
        into [min, max]. Symmetric: ``scale = 2·absmax/(2^b − 1)``, ``zero = 2^(b−1)``. A group
        of zeros spans [−1, 1]. The scale is rounded up to float16 before anything is rounded on
        it, so that every weight lies within half a step of the grid.

        Args:
            weight: (out, in); the group size divides ``in``.
            spec: Bits, group size, symmetry, clipping.
            stats: Statistics of the input, read only for ``clip``: ``hessian`` (in, in).

        Raises:
            NumericalError: If a scale exceeds the range of float16.
            PlanError: If ``clip`` lacks the statistics.
        """
        rows, columns = weight.shape
        groups = weight.reshape(rows, -1, spec.group_size or columns)
        low, high = groups.aminmax(dim=-1)
        low, high = low.clamp(max=0), high.clamp(min=0)
        if spec.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        empty = (low == 0) & (high == 0)
        low, high = low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)
        if spec.mse:
            shrink = _best_clip(groups, low, high, spec)
            low, high = low * shrink, high * shrink
        if spec.clip:
            hessian = require(stats, "hessian", spec.token(), columns)
            low, high = _output_clip(groups, low, high, spec, hessian)
        return cls(*_affine(low, high, spec), spec.bits)

    @property
    def levels(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def codes(self, weight: Tensor) -> Tensor:
        """Return ``clamp(round(w/scale) + zero, 0, 2^b − 1)``, (out, in) uint8, half to even."""
        rows, columns = weight.shape
        grouped = weight.reshape(rows, self.scale.shape[1], -1)
        codes = (grouped / self.scale.to(weight.dtype)[..., None]).round_()
        codes.add_(self.zero[..., None]).clamp_(0, self.levels)
        return codes.to(torch.uint8).reshape(rows, columns)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the nearest points of the grid, (out, in): what :meth:`codes` decodes to."""
        grouped = weight.reshape(weight.shape[0], self.scale.shape[1], -1)
        scale, zero = (side.to(weight.dtype)[..., None] for side in (self.scale, self.zero))
        if self.zero.is_floating_point():
            points = (grouped / scale).add_(zero).round_().clamp_(0, self.levels).sub_(zero)
        else:
            points = (grouped / scale).round_().clamp_(-zero, self.levels - zero)
        return points.mul_(scale).view(weight.shape)


class UniformMethod:
    """What uniform quantizers share: the layout and the grid."""

    scope: ClassVar[Scope] = "site"
    formats: ClassVar[tuple[str, ...]] = ("uniform",)

    def layout(self, spec: UniformSpec, shape: tuple[int, int], dtype: str = "") -> Uniform:
        """Return the layout of a weight (out, in); ``dtype`` plays no part.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        return Uniform(shape, spec.bits, spec.group_size, spec.symmetric)

    def needs_of(self, spec: UniformSpec) -> frozenset[Needs]:
        """Return what clipping by the output error needs beside the method itself."""
        return frozenset({Needs.HESSIAN}) if spec.clip else frozenset()

    def passes(self, spec: UniformSpec) -> int:
        """Return how many times the weight is gone over for the grids."""
        return CLIP_STEPS if spec.mse else OUTPUT_CLIP_STEPS if spec.clip else 1

    def grid(self, weight: Tensor, spec: UniformSpec, stats: Stats | None = None) -> AffineGrid:
        """Return scale (out, groups) float16, zero (out, groups) uint8 and bits."""
        return AffineGrid.fit(weight, spec, stats)


def _affine(low: Tensor, high: Tensor, spec: UniformSpec) -> tuple[Tensor, Tensor]:
    """Return the float16 scale and the zero code of the ranges [low, high]."""
    scale = round_up((high - low) / (2**spec.bits - 1))
    if spec.symmetric:
        return scale, torch.full_like(scale, 2 ** (spec.bits - 1), dtype=torch.uint8)
    return scale, (-low / scale.to(low.dtype)).round_().to(torch.uint8)


def round_up(scale: Tensor) -> Tensor:
    """Round positive numbers up to float16: the next float has the next bit pattern."""
    half = scale.to(torch.float16)
    bits = half.view(torch.int16) + (half.to(scale.dtype) < scale)
    half = bits.to(torch.int16).view(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise NumericalError(f"a scale of {float(scale.max()):g} does not fit float16.")
    return half


def _best_clip(groups: Tensor, low: Tensor, high: Tensor, spec: UniformSpec) -> Tensor:
    """Return the factor of 1, 0.99, …, 0.21 with the least ``Σ|w − ŵ|^2.4`` for each group.

    Rows are handled a few at a time so that the working set stays in the processor's cache.
    """
    best = torch.ones_like(low)
    for rows in torch.arange(len(groups), device=groups.device).split(CLIP_ROWS):
        part = groups[rows]
        least = torch.full_like(low[rows], torch.inf)
        for step in range(CLIP_STEPS):
            shrink = 1 - step / 100
            scale, zero = _affine(low[rows] * shrink, high[rows] * shrink, spec)
            step_size = scale.to(part.dtype)[..., None]
            offset = zero.to(part.dtype)[..., None]
            error = (part / step_size).round_().add_(offset).clamp_(0, 2**spec.bits - 1)
            error.sub_(offset).mul_(step_size).sub_(part).abs_().pow_(CLIP_NORM)
            total = error.sum(dim=-1)
            better = total < least
            least = torch.where(better, total, least)
            best[rows] = torch.where(better, shrink, best[rows])
    return best


def _output_clip(
    groups: Tensor, low: Tensor, high: Tensor, spec: UniformSpec, hessian: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ranges cut at ``±max · (1 − i/20)``, i < 10, with the least error of the output.

    The error of a group is what it adds to the output by itself, ``d H_gg dᵀ`` with ``d = ŵ − w``
    and the group's block of H.

    Reference:
        Lin et al. 2023, AWQ, https://arxiv.org/abs/2306.00978

    Args:
        groups: (out, groups, size).
        low: (out, groups), at most 0.
        high: (out, groups), at least 0.
        spec: Bits and symmetry.
        hessian: (in, in), ``H = E[x xᵀ]``.
    """
    largest, size = torch.maximum(-low, high), groups.shape[2]
    best_low, best_high = low.clone(), high.clone()
    for index in range(groups.shape[1]):
        group, columns = slice(index, index + 1), slice(index * size, (index + 1) * size)
        part, moments = groups[:, index].contiguous(), hessian[columns, columns].to(groups)
        least = torch.full_like(low[:, group], torch.inf)
        for step in range(OUTPUT_CLIP_STEPS):
            bound = largest[:, group] * (1 - step / (2 * OUTPUT_CLIP_STEPS))
            cut_low = torch.maximum(low[:, group], -bound)
            cut_high = torch.minimum(high[:, group], bound)
            grid = AffineGrid(*_affine(cut_low, cut_high, spec), spec.bits)
            change = grid.nearest(part).sub_(part)
            error = (change @ moments).mul_(change).sum(dim=1, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            best_low[:, group] = torch.where(better, cut_low, best_low[:, group])
            best_high[:, group] = torch.where(better, cut_high, best_high[:, group])
    return best_low, best_high
