"""Compressed weights whose codes, scales and values are trained; masks, grids and bytes stay.

Every part starts where what is stored is, to the bit, and is read off in the same format.
"""

import math
from abc import abstractmethod

import torch
from torch import Generator, Tensor, nn

from autocomp.formats.base import CompressedWeight, within
from autocomp.formats.factors import Factors
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.prepared import Prepared
from autocomp.formats.straight_through import straight_through
from autocomp.formats.sum import Sum


class Trained(nn.Module):
    """A compressed weight that is trained; its parameters are fp32."""

    @abstractmethod
    def forward(self) -> Tensor:
        """Return what a linear multiplies, (out, in) fp32, exactly what :meth:`stored` holds."""

    @abstractmethod
    def stored(self) -> CompressedWeight:
        """Return the compressed weight as trained so far, in the layout that it had."""


def trained(weight: CompressedWeight, rank: int, generator: Generator) -> Trained:
    """Return the trained form of a compressed weight.

    Args:
        weight: Of any format.
        rank: Rank of what is added to each matrix, at most its own.
        generator: Draws the starting points, on the CPU.
    """
    layout = weight.layout
    if isinstance(layout, Prepared):
        return _Prepared(layout, weight, trained(layout.unpack(weight.tensors), rank, generator))
    if isinstance(layout, Factors | Sum):
        one, other = (trained(part, rank, generator) for part in layout.unpack(weight.tensors))
        if isinstance(layout, Factors):
            return _Product(layout, one, other)
        return _Total(layout, one, other)
    dense = weight.to_dense()
    leaf = weight.grid_leaf(dense)
    change = _Change(dense, rank, generator)
    if leaf is None or leaf.fixed:
        return _Values(weight, dense, change)
    return _Codes(leaf, change)


class _Change(nn.Module):
    """``m ⊙ (B A)``: B starts at 0, A normal with variance 1/rank, m the rows' root mean squares.

    So a step of size η of the optimizer moves the weights of a row by about η times their size,
    whatever the shape and the rank.
    """

    def __init__(self, dense: Tensor, rank: int, generator: Generator) -> None:
        super().__init__()
        rows, columns = dense.shape
        rank = min(rank, rows, columns)
        start = torch.randn(rank, columns, generator=generator) / math.sqrt(rank)
        self.down = nn.Parameter(start.to(dense.device))
        self.up = nn.Parameter(dense.new_zeros(rows, rank))
        self.size = dense.square().mean(dim=1, keepdim=True).sqrt()

    def forward(self) -> Tensor:
        return (self.up * self.size) @ self.down


class _Codes(Trained):
    """``s ρ (clamp(round(q + m ⊙ B A / s)) − z)``: codes move by low rank, every scale by its ρ.

    The gradient passes the rounding of codes, and of scales to fp16, as if it were not there.
    """

    def __init__(self, leaf: GridLeaf, change: _Change) -> None:
        super().__init__()
        self.change = change
        self.codes, self.scale, self.zero = leaf.codes, leaf.scale, leaf.zero
        self.step = torch.where(leaf.scale == 0, 1.0, leaf.scale)
        self.largest = (1 << leaf.bits) - 1
        self.keep, self.regrid = leaf.keep, leaf.regrid
        self.ratio = nn.Parameter(torch.ones_like(leaf.scale))

    def exact_codes(self) -> Tensor:
        """Return the codes before rounding, (out, in)."""
        moved = self.change().view(*self.step.shape, -1) / self.step[..., None]
        return moved.view(self.codes.shape) + self.codes

    def trained_scale(self) -> Tensor:
        """Return the scales as stored, (out, groups)."""
        scale = self.scale * self.ratio
        return straight_through(scale, scale.half().float())

    def forward(self) -> Tensor:
        exact = self.exact_codes()
        rounded = exact.detach().round().clamp_(0, self.largest)
        codes = straight_through(exact, rounded).view(*self.scale.shape, -1)
        dense = (codes - self.zero[..., None]) * self.trained_scale()[..., None]
        dense = dense.view(exact.shape)
        return dense if self.keep is None else dense * self.keep

    @torch.no_grad()
    def stored(self) -> CompressedWeight:
        codes = self.exact_codes().round().clamp_(0, self.largest).to(torch.uint8)
        return self.regrid(codes, self.trained_scale(), self.zero)


class _Values(Trained):
    """Values that move by low rank, as their format rounds and masks them."""

    def __init__(self, weight: CompressedWeight, dense: Tensor, change: _Change) -> None:
        super().__init__()
        self.weight, self.dense, self.change = weight, dense, change

    def forward(self) -> Tensor:
        return self.weight.layout.fake_quant(self.dense + self.change(), self.weight.tensors)

    @torch.no_grad()
    def stored(self) -> CompressedWeight:
        return self.weight.layout.store(self.dense + self.change(), self.weight.tensors)


class _Product(Trained):
    """Two trained factors."""

    def __init__(self, layout: Factors, left: Trained, right: Trained) -> None:
        super().__init__()
        self.layout, self.left, self.right = layout, left, right

    def forward(self) -> Tensor:
        product: Tensor = self.left() @ self.right()
        return product

    def stored(self) -> CompressedWeight:
        return self.layout.pack(self.left.stored(), self.right.stored())


class _Total(Trained):
    """A trained base and a trained correction."""

    def __init__(self, layout: Sum, base: Trained, correction: Trained) -> None:
        super().__init__()
        self.layout, self.base, self.correction = layout, base, correction

    def forward(self) -> Tensor:
        total: Tensor = self.base() + self.correction()
        return total

    def stored(self) -> CompressedWeight:
        return self.layout.pack(self.base.stored(), self.correction.stored())


class _Prepared(Trained):
    """A trained weight behind an input step that stays."""

    def __init__(self, layout: Prepared, weight: CompressedWeight, inner: Trained) -> None:
        super().__init__()
        self.layout, self.weight, self.inner = layout, weight, inner

    def forward(self) -> Tensor:
        inner: Tensor = self.inner()
        return inner

    def stored(self) -> CompressedWeight:
        tensors = self.weight.tensors
        return self.layout.pack(
            self.inner.stored(), within(tensors, "input"), within(tensors, "activation")
        )
