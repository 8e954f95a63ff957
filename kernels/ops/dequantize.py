"""Codes on a uniform grid to floating point: ``w = scale · (code − zero)``."""

import torch
from torch import Tensor

from autocomp.kernels._op import operation
from autocomp.kernels.bits import unpack_bits

# 4 MiB of fp32 at a time: a call of torch costs as much as the work on some 100,000 codes.
_CHUNK_CODES = 1 << 20


def on_grid(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return ``scale · (code − zero)``, (out, in) fp32; exact for fp16 scales.

    Args:
        codes: (out, in) uint8.
        scale: (out, groups) fp32; a group is ``in / groups`` consecutive inputs.
        zero: (out, groups) fp32, whole numbers.
    """
    rows, columns = codes.shape
    grouped = codes.view(rows, scale.shape[1], -1)
    scale, zero = scale[..., None], zero[..., None]
    dense = torch.empty(grouped.shape, dtype=torch.float32, device=codes.device)
    step = max(1, _CHUNK_CODES // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        dense[part].copy_(grouped[part]).sub_(zero[part]).mul_(scale[part])
    return dense.view(rows, columns)


def zero_points(zero: Tensor | None, scale: Tensor, bits: int) -> Tensor:
    """Return the zero points (out, groups) fp32: unpacked, or ``2^(bits−1)`` where none is stored.

    Args:
        zero: (out, ceil(groups·bits/8)) uint8, or ``None``.
        scale: (out, groups).
        bits: Bits a zero point.
    """
    if zero is None:
        return torch.full(scale.shape, float(1 << (bits - 1)), device=scale.device)
    return unpack_bits(zero, bits, scale.shape[1]).to(torch.float32)


@operation
def dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, columns: int
) -> Tensor:
    """Decode packed codes to fp32, exactly.

    Args:
        codes: (out, ceil(columns·bits/8)) uint8.
        scale: (out, groups) fp16.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code, 1 to 8.
        columns: Codes a row.

    Returns:
        (out, columns) fp32.
    """
    wide = scale.to(torch.float32)
    return on_grid(unpack_bits(codes, bits, columns), wide, zero_points(zero, scale, bits))
