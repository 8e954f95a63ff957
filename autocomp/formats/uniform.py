"""Uniform integer grids: packed codes, a scale and a zero point a group.

Decoding is ``w = scale · (code − zero)``. Codes have at most 8 bits and scales are fp16, so this
product is exact in fp32: all decoders that compute in fp32 agree to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.core.spec import BITS
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.bits import pack_bits, packed_bytes, unpack_bits
from autocomp.kernels.dequantize import dequantize, on_grid, zero_points
from autocomp.kernels.gather_rows import gather_rows, gather_tile_rows
from autocomp.kernels.int4_tile_matmul import (
    from_offset,
    from_tiles,
    int4_tile_matmul,
    to_offset,
    to_tiles,
    why_no_tiles,
)
from autocomp.kernels.weight_only_matmul import weight_only_matmul

TILES, OFFSET = "tiles", "offset"
"""Names of the settled tensors."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A uniform grid, apart from the codes.

    Args:
        bits: Bits a code: 2, 3, 4, 5, 6 or 8.
        group_size: Consecutive inputs of a row that share a scale; ``None`` is the whole row.
        symmetric: No zero point is stored; it is ``2^(bits−1)``.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Check the bits.

        Raises:
            PlanError: If the bits are not one of those that formats pack.
        """
        if self.bits not in BITS:
            raise PlanError(f"a grid has one of {BITS} bits a code, got {self.bits}.")

    @property
    def levels(self) -> int:
        """Number of codes, ``2^bits``."""
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The fixed zero point of a symmetric grid, ``2^(bits−1)``."""
        return 1 << (self.bits - 1)

    def groups(self, in_features: int) -> int:
        """Return the number of groups of a row."""
        return in_features // (self.group_size or in_features)

    def check(self, shape: tuple[int, int]) -> None:
        """Check that the groups cover the rows of a weight.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        size = self.group_size
        if size is not None and (size < 1 or shape[1] % size):
            divisors = [part for part in range(1, shape[1] + 1) if shape[1] % part == 0]
            raise PlanError(
                f"a group size of {size} does not divide the {shape[1]} inputs of a weight of "
                f"shape {tuple(shape)}. Use one of {divisors}, or none for the whole row."
            )

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorInfo]:
        """Return the tensors beside the codes: ``scale``, and ``zero`` unless symmetric."""
        groups = self.groups(shape[1])
        tensors = {"scale": TensorInfo((shape[0], groups), "float16")}
        if not self.symmetric:
            packed = packed_bytes(groups, self.bits)
            tensors["zero"] = TensorInfo((shape[0], packed), "uint8")
        return tensors

    def pack(self, scale: Tensor, zero: Tensor | None) -> dict[str, Tensor]:
        """Store scales and zero points.

        Args:
            scale: (out, groups); should already be representable in fp16.
            zero: (out, groups), whole numbers in ``0 … 2^bits − 1``; ignored when symmetric.

        Raises:
            NumericalError: If a scale is not finite in fp16.
            PlanError: If the zero points of an asymmetric grid are missing.
        """
        half = scale.detach().to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise NumericalError(
                "a scale is not finite in float16: the weight holds NaN, infinity or values "
                "too large for the grid."
            )
        tensors = {"scale": half}
        if not self.symmetric:
            if zero is None:
                raise PlanError("an asymmetric grid needs zero points.")
            tensors["zero"] = pack_bits(zero.detach().to(torch.int64), self.bits)
        return tensors

    def sides(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, each (out, groups) fp32."""
        scale = tensors["scale"].to(torch.float32)
        return scale, zero_points(tensors.get("zero"), scale, self.bits)

    def decode(self, codes: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``scale · (code − zero)``, (out, in) fp32, for codes (out, in) uint8."""
        return on_grid(codes, *self.sides(tensors))

    def codes(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the codes (out, in) uint8 of the nearest points of the stored grid."""
        scale, zero = (side[..., None] for side in self.sides(tensors))
        grouped = weight.detach().reshape(weight.shape[0], scale.shape[1], -1)
        codes = torch.round(grouped / torch.where(scale == 0, 1.0, scale)) + zero
        return codes.clamp_(0, self.levels - 1).to(torch.uint8).view(weight.shape)

    def project(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the nearest points of the stored grid, (out, in) fp32, without gradient."""
        return self.decode(self.codes(weight, tensors), tensors)

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> "Grid | None":
        """Return the grid of the JSON form of a field, which may be ``None``."""
        return None if data is None else cls(**data)


@dataclass(frozen=True, slots=True)
class Uniform(Format):
    """Packed codes ``codes`` (out, ceil(in·bits/8)) uint8 beside the tensors of the grid.

    Args:
        bits: Bits a code: 2, 3, 4, 5, 6 or 8.
        group_size: Consecutive inputs that share a scale; ``None`` is the whole row.
        symmetric: No zero point is stored.
    """

    name: ClassVar[str] = "uniform"

    bits: int
    group_size: int | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Check shape and grid.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        Format.__post_init__(self)
        self.grid.check(self.shape)

    @property
    def grid(self) -> Grid:
        """The grid, apart from the codes."""
        return Grid(self.bits, self.group_size, self.symmetric)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``codes``, ``scale`` and, unless symmetric, ``zero``."""
        codes = TensorInfo((self.shape[0], packed_bytes(self.shape[1], self.bits)), "uint8")
        return {"codes": codes, **self.grid.tensors(self.shape)}

    def pack(self, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> CompressedWeight:
        """Store codes (out, in) in ``0 … 2^bits − 1`` with scale and zero (out, groups)."""
        packed = pack_bits(codes, self.bits)
        return CompressedWeight(self, {"codes": packed, **self.grid.pack(scale, zero)})

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return dequantize(*self._stored(tensors), self.bits, self.shape[1])

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in); the codes stay packed."""
        if TILES in tensors:
            offset = tensors.get(OFFSET)
            return int4_tile_matmul(inputs, tensors[TILES], tensors["scale"], offset)
        return weight_only_matmul(inputs, *self._stored(tensors), self.bits)

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Decode rows (n, in) fp32 and no others."""
        if TILES in tensors:
            offset = tensors.get(OFFSET)
            return gather_tile_rows(index, tensors[TILES], tensors["scale"], offset)
        return gather_rows(index, *self._stored(tensors), self.bits, self.shape[1])

    def settle(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return 4-bit codes in tiles where a kernel reads those."""
        codes, scale, zero = self._stored(tensors)
        size = self.group_size or self.shape[1]
        if why_no_tiles(self.shape, self.bits, size, dtype, codes.device):
            return dict(tensors)
        rest = {} if zero is None else {OFFSET: to_offset(zero, scale.shape[1])}
        return {TILES: to_tiles(codes), "scale": scale, **rest}

    def unsettle(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return codes, scale and zero."""
        if TILES not in tensors:
            return dict(tensors)
        rest = {"zero": from_offset(tensors[OFFSET])} if OFFSET in tensors else {}
        return {"codes": from_tiles(tensors[TILES]), "scale": tensors["scale"], **rest}

    @staticmethod
    def _stored(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return codes, scale and zero, as kernels take them."""
        return tensors["codes"], tensors["scale"], tensors.get("zero")

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Round to the stored grid."""
        return straight_through(weight, self.grid.project(weight, tensors))

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the codes of the nearest points of the stored grid."""
        codes = pack_bits(self.grid.codes(weight, tensors), self.bits)
        return CompressedWeight(self, {**tensors, "codes": codes})

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf:
        """Return the whole matrix."""
        codes = unpack_bits(tensors["codes"], self.bits, self.shape[1])
        scale, zero = self.grid.sides(tensors)
        return GridLeaf(weight, self.bits, self.symmetric, codes, scale, zero, self.pack)
