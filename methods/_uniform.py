"""Uniform integer grids: where they lie and how weights are rounded on them."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError
from autocomp.core.spec import UniformSpec
from autocomp.formats.uniform import Uniform

CLIP_STEPS = 80
CLIP_NORM = 2.4
CLIP_ROWS = 32


class AffineGrid(NamedTuple):
    """A grid for each group of a row, ``w ≈ scale · (code − zero)``.

    Args:
        scale: (out, groups) float16, positive.
        zero: (out, groups) uint8, the code of the value 0.
        bits: Bits a code.
    """

    scale: Tensor
    zero: Tensor
    bits: int

    @classmethod
    def fit(cls, weight: Tensor, spec: UniformSpec) -> Self:
        """Return the grid that spans each group, or with ``spec.mse`` a clipped one.

        Asymmetric: ``scale = (max − min)/(2^b − 1)``, ``zero = round(−min/scale)`` with 0 forced
        into [min, max]. Symmetric: ``scale = 2·absmax/(2^b − 1)``, ``zero = 2^(b−1)``. A group
        of zeros spans [−1, 1]. The scale is rounded up to float16 before anything is rounded on
        it, so that every weight lies within half a step of the grid.

        Args:
            weight: (out, in); the group size divides ``in``.
            spec: Bits, group size, symmetry, clipping.

        Raises:
            NumericalError: If a scale exceeds the range of float16.
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


class UniformMethod:
    """What uniform quantizers share: the layout and the grid."""

    def layout(self, spec: UniformSpec, shape: tuple[int, int], dtype: str = "") -> Uniform:
        """Return the layout of a weight (out, in); ``dtype`` plays no part.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        return Uniform(shape, spec.bits, spec.group_size, spec.symmetric)

    def grid(self, weight: Tensor, spec: UniformSpec) -> AffineGrid:
        """Return scale (out, groups) float16, zero (out, groups) uint8 and bits."""
        return AffineGrid.fit(weight, spec)


def _affine(low: Tensor, high: Tensor, spec: UniformSpec) -> tuple[Tensor, Tensor]:
    """Return the float16 scale and the zero code of the ranges [low, high]."""
    scale = _half_up((high - low) / (2**spec.bits - 1))
    if spec.symmetric:
        return scale, torch.full_like(scale, 2 ** (spec.bits - 1), dtype=torch.uint8)
    return scale, (-low / scale.to(low.dtype)).round_().to(torch.uint8)


def _half_up(scale: Tensor) -> Tensor:
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
