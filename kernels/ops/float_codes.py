"""Floating-point codes of 4 and 8 bits: which numbers they are, and weights made of them."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from autocomp.kernels.bits import pack_bits

EXPONENT_FIELD = 0x7F800000
"""The exponent of a float32: what is left of a number when its fraction is taken off."""

LARGEST_EXPONENT = 254
"""The largest byte that stands for a power of two; 127 stands for 1."""


@dataclass(frozen=True, slots=True)
class FloatCode:
    """A sign, an exponent and a mantissa in few bits, with subnormal numbers, without infinity.

    ``±2^max(e, 1) · (m/2^M + [e > 0]) · 2^−bias``; a zero has no sign.

    Args:
        name: ``e<exponent bits>m<mantissa bits>``.
        bits: Bits of a code, 4 or 8.
        mantissa_bits: M.
        largest: The largest number.
        dtype: How torch calls it; uint8 where two codes share a byte, the first the lower half.
    """

    name: str
    bits: int
    mantissa_bits: int
    largest: float
    dtype: torch.dtype

    @property
    def bias(self) -> int:
        """What is taken off the exponent, ``2^(exponent bits − 1) − 1``."""
        return (1 << (self.bits - self.mantissa_bits - 2)) - 1

    def nearest(self, values: Tensor) -> Tensor:
        """Return the nearest numbers of fp32 values, fp32; halves go to the even mantissa.

        What is beyond the largest number becomes that.
        """
        inside = values.clamp(-self.largest, self.largest)
        power = (inside.abs().view(torch.int32) & EXPONENT_FIELD).view(torch.float32)
        step = power.clamp_min_(2.0 ** (1 - self.bias)).mul_(2.0**-self.mantissa_bits)
        return inside.div_(step).round_().mul_(step)

    def pack(self, points: Tensor) -> Tensor:
        """Return the codes (out, ceil(in·bits/8)) of numbers of the code (out, in), fp32."""
        unsigned = points + 0.0  # which makes −0 a 0
        if self.bits == 8:
            return unsigned.to(self.dtype)
        # The exponents of float32 begin 2^(bias − 127) below: with that factor, fields agree.
        field = unsigned.mul_(2.0 ** (self.bias - 127)).view(torch.int32)
        sign = (field >> (32 - self.bits)) & (1 << (self.bits - 1))
        size = (field >> (23 - self.mantissa_bits)) & ((1 << (self.bits - 1)) - 1)
        return pack_bits(sign | size, self.bits)

    def unpack(self, codes: Tensor, columns: int) -> Tensor:
        """Return the numbers (out, columns) fp32 of what :meth:`pack` returns."""
        if self.bits == 8:
            return codes.to(torch.float32)
        table = _pairs().to(codes.device)
        pairs = table.index_select(0, codes.flatten().to(torch.int32))
        return pairs.view(len(codes), -1)[:, :columns]


CODES = {
    code.name: code
    for code in (
        FloatCode("e2m1", 4, 1, 6.0, torch.uint8),
        FloatCode("e4m3", 8, 3, 448.0, torch.float8_e4m3fn),
        FloatCode("e5m2", 8, 2, 57344.0, torch.float8_e5m2),
    )
}
"""The codes by name."""


@lru_cache(maxsize=1)
def _pairs() -> Tensor:
    """Return the two numbers of each byte of E2M1 codes, (256, 2) fp32."""
    size = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    levels = torch.cat([size, -size])
    byte = torch.arange(256)
    return torch.stack([levels[byte & 15], levels[byte >> 4]], dim=1)


def code_of(codes: Tensor) -> FloatCode:
    """Return what the codes of a stored tensor are, told by its dtype."""
    return next(code for code in CODES.values() if code.dtype == codes.dtype)


def group_steps(scale: Tensor, base: Tensor | None) -> Tensor:
    """Return what the numbers of each group are multiplied by, (out, groups) fp32, exactly.

    Args:
        scale: (out, groups) float16, or uint8: powers of two, ``2^(byte − 127)``.
        base: (out, 1) float16, a factor of each row; ``None`` is 1.
    """
    if scale.dtype == torch.uint8:
        steps = (scale.to(torch.int32) << 23).view(torch.float32)
    else:
        steps = scale.to(torch.float32)
    return steps if base is None else steps * base


def float_weight(codes: Tensor, scale: Tensor, base: Tensor | None, columns: int) -> Tensor:
    """Return ``step · number``, (out, columns) fp32, exactly.

    Args:
        codes: (out, ceil(columns/2)) uint8 of E2M1, or (out, columns) of a float8 dtype.
        scale: As :func:`group_steps` takes it; ``columns / groups`` consecutive inputs a group.
        base: As :func:`group_steps` takes it.
        columns: Inputs of a row.
    """
    points = code_of(codes).unpack(codes, columns)
    grouped = points.reshape(len(codes), scale.shape[1], -1)
    return (grouped * group_steps(scale, base)[..., None]).view(len(codes), columns)
