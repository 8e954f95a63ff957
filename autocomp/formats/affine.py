"""Evenly spaced levels with a real zero point: packed codes, a scale and a zero a group."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.straight_through import straight_through
from autocomp.formats.uniform import Grid
from autocomp.kernels.bits import pack_bits, packed_bytes, unpack_bits


@dataclass(frozen=True, slots=True)
class Affine(Format):
    """``w = scale · (code − zero)`` where the zero need not be a code.

    ``codes`` (out, ceil(in·bits/8)) uint8, ``scale`` and ``zero`` (out, groups) float16.

    Args:
        bits: Bits a code: 2, 3, 4, 5, 6 or 8.
        group_size: Consecutive inputs that share a scale; ``None`` is the whole row.
    """

    name: ClassVar[str] = "affine"

    bits: int
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Check shape and grid.

        Raises:
            PlanError: If the bits are none of those, or the group size does not divide the inputs.
        """
        Format.__post_init__(self)
        self._grid.check(self.shape)

    @property
    def _grid(self) -> Grid:
        return Grid(self.bits, self.group_size)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``codes``, ``scale`` and ``zero``."""
        rows, columns = self.shape
        side = TensorInfo((rows, self._grid.groups(columns)), "float16")
        codes = TensorInfo((rows, packed_bytes(columns, self.bits)), "uint8")
        return {"codes": codes, "scale": side, "zero": side}

    def pack(self, codes: Tensor, scale: Tensor, zero: Tensor) -> CompressedWeight:
        """Store codes (out, in) in ``0 … 2^bits − 1`` with scale and zero (out, groups).

        Raises:
            NumericalError: If a scale or a zero is not finite in float16.
        """
        sides = {"scale": scale.detach().half(), "zero": zero.detach().half()}
        if not all(bool(torch.isfinite(side).all()) for side in sides.values()):
            raise NumericalError("a scale or a zero point is not finite in float16.")
        return CompressedWeight(self, {"codes": pack_bits(codes, self.bits), **sides})

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return self._decode(unpack_bits(tensors["codes"], self.bits, self.shape[1]), tensors)

    def _decode(self, codes: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        scale, zero = (tensors[side].float()[..., None] for side in ("scale", "zero"))
        grouped = codes.view(*tensors["scale"].shape, -1)
        return ((grouped - zero) * scale).view(self.shape)

    def codes(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the codes (out, in) uint8 of the nearest levels under stored sides."""
        scale, zero = (tensors[side].float()[..., None] for side in ("scale", "zero"))
        grouped = weight.detach().reshape(*tensors["scale"].shape, -1)
        found = (grouped / torch.where(scale == 0, 1.0, scale) + zero).round_()
        return found.clamp_(0, (1 << self.bits) - 1).to(torch.uint8).view(self.shape)

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Take the nearest levels under the stored scales and zeros."""
        return straight_through(weight, self._decode(self.codes(weight, tensors), tensors))

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the codes of the nearest levels under the stored scales and zeros."""
        codes = pack_bits(self.codes(weight, tensors), self.bits)
        return CompressedWeight(self, {**tensors, "codes": codes})

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf:
        """Return the whole matrix; its zeros are real."""
        codes = unpack_bits(tensors["codes"], self.bits, self.shape[1])
        scale, zero = (tensors[side].to(torch.float32) for side in ("scale", "zero"))
        return GridLeaf(weight, self.bits, False, codes, scale, zero, self.pack)
