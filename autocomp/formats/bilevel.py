"""Uniform codes whose scales and zero points are rounded as well, for groups of few weights.

Decoding is ``w = s · (code − z)`` with ``s = s₀ + s₁ · code_s`` and ``z = z₀ + z₁ · code_z``:
small codes for each group of a row, two float16 numbers for each band of rows.

Reference:
    Dettmers et al. 2023, SpQR, https://arxiv.org/abs/2306.03078
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.core.spec import BITS
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.bits import pack_bits, packed_bytes, unpack_bits

SMALLEST_STEP = 2.0**-24  # the least positive float16


class Statistic(NamedTuple):
    """A number for each group of a row, rounded on a grid that a band of rows shares.

    ``value = low + step · code``, exact codes, float16 low and step.

    Args:
        codes: (out, groups) uint8.
        low: (bands, groups) float16.
        step: (bands, groups) float16.
    """

    codes: Tensor
    low: Tensor
    step: Tensor

    @classmethod
    def fit(cls, values: Tensor, bits: int, band: int) -> Self:
        """Round numbers on the grids that span them: at most half a step away, up to float16.

        Args:
            values: (out, groups).
            bits: Bits a code.
            band: Consecutive rows that share a grid; the last band may be shorter.

        Raises:
            NumericalError: If a number does not fit float16.
        """
        rows, groups = values.shape
        missing = -rows % band
        padded = torch.cat([values, values[-1:].expand(missing, groups)])
        banded = padded.view(-1, band, groups)
        least, largest = banded.aminmax(dim=1)
        low = least.half()
        step = ((largest - low.to(values.dtype)) / ((1 << bits) - 1)).half()
        if not bool(torch.isfinite(low).all() & torch.isfinite(step).all()):
            raise NumericalError("a scale or a zero point does not fit float16.")
        size = step.to(values.dtype).clamp_min(SMALLEST_STEP)
        codes = ((banded - low.to(values.dtype)[:, None]) / size[:, None]).round_()
        codes = codes.clamp_(0, (1 << bits) - 1).to(torch.uint8).view(-1, groups)[:rows]
        return cls(codes, low, step)

    def values(self, band: int) -> Tensor:
        """Return the rounded numbers, (out, groups) fp32."""
        low, step = (
            side.float().repeat_interleave(band, dim=0)[: len(self.codes)]
            for side in (self.low, self.step)
        )
        return torch.addcmul(low, step, self.codes.float())


@dataclass(frozen=True, slots=True)
class Bilevel(Format):
    """Packed codes, and for ``scale`` and ``zero`` packed codes beside ``low`` and ``step``.

    ``codes`` (out, ceil(in·bits/8)) uint8; ``scale.codes`` and ``zero.codes``
    (out, ceil(groups·statistic_bits/8)) uint8; ``….low`` and ``….step`` (bands, groups) float16.

    Args:
        bits: Bits a code: 2, 3, 4, 5, 6 or 8.
        group_size: Consecutive inputs of a row that share a scale.
        statistic_bits: Bits of a scale's and of a zero point's code, 1 to 8.
        band: Rows that share the grids of scales and zero points.
    """

    name: ClassVar[str] = "bilevel"

    bits: int
    group_size: int
    statistic_bits: int = 3
    band: int = 16

    def __post_init__(self) -> None:
        """Check shape, bits, groups and bands.

        Raises:
            PlanError: If there is no such grid or the groups do not cover the rows.
        """
        Format.__post_init__(self)
        if self.bits not in BITS or not 1 <= self.statistic_bits <= 8:
            raise PlanError(
                f"codes have one of {BITS} bits and their statistics 1 to 8, got {self.bits} and "
                f"{self.statistic_bits}."
            )
        if self.group_size < 1 or self.shape[1] % self.group_size or self.band < 1:
            raise PlanError(
                f"groups of {self.group_size} inputs in bands of {self.band} rows do not cover a "
                f"weight of shape {self.shape}: the group size divides the inputs."
            )

    @property
    def groups(self) -> int:
        """Number of groups of a row."""
        return self.shape[1] // self.group_size

    def tensors(self) -> dict[str, TensorInfo]:
        """Return the tensors of the codes, the scales and the zero points."""
        rows, columns = self.shape
        codes = TensorInfo((rows, packed_bytes(self.groups, self.statistic_bits)), "uint8")
        side = TensorInfo((-(-rows // self.band), self.groups), "float16")
        return {
            "codes": TensorInfo((rows, packed_bytes(columns, self.bits)), "uint8"),
            **{
                f"{name}.{part}": info
                for name in ("scale", "zero")
                for part, info in (("grid", codes), ("low", side), ("step", side))
            },
        }

    def pack(self, codes: Tensor, scale: Statistic, zero: Statistic) -> CompressedWeight:
        """Store codes (out, in) in ``0 … 2^bits − 1`` with their rounded statistics."""
        tensors = {"codes": pack_bits(codes, self.bits)}
        for name, side in (("scale", scale), ("zero", zero)):
            tensors[f"{name}.grid"] = pack_bits(side.codes, self.statistic_bits)
            tensors[f"{name}.low"], tensors[f"{name}.step"] = side.low, side.step
        return CompressedWeight(self, tensors)

    def sides(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, each (out, groups) fp32."""
        return self._side(tensors, "scale"), self._side(tensors, "zero")

    def _side(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        codes = unpack_bits(tensors[f"{name}.grid"], self.statistic_bits, self.groups)
        side = Statistic(codes, tensors[f"{name}.low"], tensors[f"{name}.step"])
        return side.values(self.band)

    def _decode(self, codes: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``s · (code − z)``, (out, in) fp32, for codes (out, in)."""
        scale, zero = self.sides(tensors)
        grouped = codes.view(*scale.shape, -1).float()
        return grouped.sub_(zero[..., None]).mul_(scale[..., None]).view(self.shape)

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return self._decode(unpack_bits(tensors["codes"], self.bits, self.shape[1]), tensors)

    def _nearest(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the codes (out, in) uint8 of the nearest points of the stored grids."""
        scale, zero = self.sides(tensors)
        grouped = weight.detach().reshape(*scale.shape, -1)
        codes = grouped / torch.where(scale == 0, 1.0, scale)[..., None] + zero[..., None]
        codes = codes.round_().clamp_(0, (1 << self.bits) - 1)
        return codes.to(torch.uint8).view(self.shape)

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Round to the stored grids."""
        return straight_through(weight, self._decode(self._nearest(weight, tensors), tensors))

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the codes of the nearest points of the stored grids."""
        codes = pack_bits(self._nearest(weight, tensors), self.bits)
        return CompressedWeight(self, {**tensors, "codes": codes})

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf:
        """Return the whole matrix, whose grids stay."""
        codes = unpack_bits(tensors["codes"], self.bits, self.shape[1])

        def regrid(codes: Tensor, scale: Tensor, zero: Tensor) -> CompressedWeight:
            return CompressedWeight(self, {**tensors, "codes": pack_bits(codes, self.bits)})

        sides = self.sides(tensors)
        return GridLeaf(weight, self.bits, False, codes, *sides, regrid, fixed=True)
