"""Roundings and clips of one matrix as parameters, with their gradient worked out by hand."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from autocomp.formats.base import CompressedWeight
from autocomp.formats.leaf import GridLeaf

SMALLEST_CLIP = 0.5
SMALLEST_SCALE = 2.0**-24  # the least positive float16
CHUNK_WEIGHTS = 1 << 16  # stays in the cache


class State(NamedTuple):
    """What is learned of one matrix.

    Args:
        shift: V (out, groups, group size) fp32.
        alpha: (out, groups) fp32, in [0.5, 1].
        beta: (out, groups) fp32, in [0.5, 1].
    """

    shift: Tensor
    alpha: Tensor
    beta: Tensor


class Rounding:
    """``ŵ = s (clamp(round(w/s + V) + z, 0, 2^b − 1) − z)`` with learned V, α and β.

    ``s = (β h − α l)/(2^b − 1)`` and ``z = round(−α l/s)``, or fixed on a symmetric grid. The ends
    ``l`` and ``h`` are those of the stored grid, which is therefore the grid of ``α = β = 1``. Of
    a fixed leaf V alone is learned. Where zero points are real numbers, the codes are
    ``round(w/s + V + z)`` and z is rounded to float16.

    Gradients pass through roundings as if they were not there, and through the clamp where it
    changes nothing.

    Args:
        leaf: The matrix, (out, in).
        dtype: Dtype in which the block multiplies.
    """

    def __init__(self, leaf: GridLeaf, dtype: torch.dtype) -> None:
        self._leaf = leaf
        self._dtype = dtype
        self._levels = (1 << leaf.bits) - 1
        self._weight = self._grouped(leaf.target)
        self._keep = None if leaf.keep is None else self._grouped(leaf.keep)
        self._offset = None if leaf.offset is None else self._grouped(leaf.offset)
        self._real = bool((leaf.zero != leaf.zero.round()).any())
        self._low = -leaf.zero * leaf.scale
        self._high = (self._levels - leaf.zero) * leaf.scale
        self._state = State(
            torch.zeros_like(self._weight), torch.ones_like(self._low), torch.ones_like(self._low)
        )

    def _grouped(self, matrix: Tensor) -> Tensor:
        """Return an (out, in) matrix as (out, groups, group size)."""
        return matrix.reshape(*self._leaf.scale.shape, -1)

    def state(self) -> State:
        """Return a copy of the parameters."""
        return State(*(part.clone() for part in self._state))

    def restore(self, state: State) -> None:
        """Go back to parameters that :meth:`state` gave."""
        for part, kept in zip(self._state, state, strict=True):
            part.copy_(kept)

    def sides(self) -> tuple[Tensor, Tensor]:
        """Return the scale, as float16 holds it, and the zero point, each (out, groups) fp32."""
        if self._leaf.fixed:
            return self._leaf.scale, self._leaf.zero
        _, alpha, beta = self._state
        scale = (beta * self._high - alpha * self._low) / self._levels
        scale = scale.to(torch.float16).to(torch.float32).clamp_min_(SMALLEST_SCALE)
        if self._leaf.symmetric:
            return scale, self._leaf.zero
        zero = -alpha * self._low / scale
        if self._real:
            return scale, zero.half().float()
        return scale, zero.round_().clamp_(0, self._levels)

    def _chunks(self) -> Iterator[slice]:
        """Yield rows a few at a time; all at once where there is no cache to stay in."""
        rows = len(self._weight)
        step = max(1, CHUNK_WEIGHTS * rows // self._weight.numel())
        step = step if self._weight.device.type == "cpu" else rows
        return (slice(start, start + step) for start in range(0, rows, step))

    def _unclamped(self, rows: slice, scale: Tensor, zero: Tensor) -> Tensor:
        """Return ``round(w/s + V) + z`` of some rows."""
        moved = torch.addcdiv(
            self._state.shift[rows], self._weight[rows], scale[rows].unsqueeze(-1)
        )
        whole = zero[rows]
        if self._real:
            whole = whole.round()
            moved.add_((zero[rows] - whole).unsqueeze(-1))
        return moved.round_().add_(whole.unsqueeze(-1))

    def operand(self) -> Tensor:
        """Return what the linear multiplies, (out, in) in its dtype."""
        scale, zero = self.sides()
        dense = torch.empty_like(self._weight, dtype=self._dtype)
        for rows in self._chunks():
            part = self._unclamped(rows, scale, zero).clamp_(0, self._levels)
            part.sub_(zero[rows].unsqueeze(-1)).mul_(scale[rows].unsqueeze(-1))
            if self._keep is not None:
                part.mul_(self._keep[rows])
            if self._offset is not None:
                part.add_(self._offset[rows])
            dense[rows].copy_(part)
        return dense.view(self._leaf.target.shape)

    def descend(self, gradient: Tensor, rate: float) -> None:
        """Move every parameter by ``rate`` against the sign of its gradient.

        With ``q`` the codes and the gradient ``g`` at ``ŵ``, sums over a group, and "in" where
        the clamp changes nothing: ``∂V = s g`` in, ``∂s = Σ g (q − z) − Σ_in g w/s`` and
        ``∂z = −s Σ_out g``; α and β follow by the chain rule.

        Args:
            gradient: (out, in) of the loss at :meth:`operand`.
            rate: How far.
        """
        scale, zero = self.sides()
        by_scale, by_zero = torch.empty_like(scale), torch.empty_like(scale)
        gradient = self._grouped(gradient)
        for rows in self._chunks():
            weight, shift = self._weight[rows], self._state.shift[rows]
            outer = gradient[rows].float()
            if self._keep is not None:
                outer = outer * self._keep[rows]
            unclamped = self._unclamped(rows, scale, zero)
            codes = unclamped.clamp(0, self._levels)
            inner = outer * (codes == unclamped)
            by_zero[rows] = inner.sum(dim=-1) - outer.sum(dim=-1)
            by_scale[rows] = (
                codes.sub_(zero[rows].unsqueeze(-1)).mul_(outer).sum(dim=-1)
                - (inner * weight).sum(dim=-1) / scale[rows]
            )
            shift.sub_(inner.sign_(), alpha=rate)
        if not self._leaf.fixed:
            self._descend_clips(by_scale, by_zero.mul_(scale), scale, rate)

    def _descend_clips(
        self, by_scale: Tensor, by_zero: Tensor, scale: Tensor, rate: float
    ) -> None:
        """Move α and β, given the gradients at scale and zero point, each (out, groups)."""
        _, alpha, beta = self._state
        if self._leaf.symmetric:
            by_alpha = by_beta = by_scale
        else:
            by_beta = by_scale + by_zero * alpha * self._low / scale.square()
            by_alpha = by_beta + by_zero * self._levels / scale
        alpha.add_((by_alpha * self._low).sign_(), alpha=rate).clamp_(SMALLEST_CLIP, 1)
        beta.sub_((by_beta * self._high).sign_(), alpha=rate).clamp_(SMALLEST_CLIP, 1)

    def compressed(self) -> CompressedWeight:
        """Return the weight with its codes and grid in place."""
        scale, zero = self.sides()
        codes = torch.empty_like(self._weight, dtype=torch.uint8)
        for rows in self._chunks():
            codes[rows] = self._unclamped(rows, scale, zero).clamp_(0, self._levels)
        return self._leaf.regrid(codes.view(self._leaf.target.shape), scale, zero)
