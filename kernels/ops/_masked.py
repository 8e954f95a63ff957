"""The kept values of a mask back in their places, floating or on a grid."""

import torch
from torch import Tensor

from autocomp.kernels.bits import unpack_bits
from autocomp.kernels.dequantize import on_grid, zero_points


def masked_codes(mask: Tensor, values: Tensor, bits: int) -> Tensor:
    """Return codes (out, in) uint8 of a mask (out, in) bool; 0 where nothing is kept.

    Args:
        mask: True is kept.
        values: (bytes,) uint8, the kept codes packed in row-major order.
        bits: Bits a code.
    """
    found = unpack_bits(values[None], bits, values.numel() * 8 // bits)[0]
    codes = torch.zeros(mask.shape, dtype=torch.uint8, device=mask.device)
    return codes.masked_scatter_(mask, found)


def masked_weight(
    mask: Tensor, values: Tensor, scale: Tensor | None, zero: Tensor | None, bits: int
) -> Tensor:
    """Return the weight (out, in) fp32 of a mask (out, in) bool; removed weights are 0.

    Args:
        mask: True is kept.
        values: The kept weights in row-major order: (kept,) floating, or (bytes,) packed codes.
        scale: (out, groups) fp16; ``None`` where the values are floating.
        zero: Packed zero points, or ``None`` for ``2^(bits−1)``.
        bits: Bits a code; not read where the values are floating.
    """
    if scale is None:
        dense = torch.zeros(mask.shape, device=mask.device)
        return dense.masked_scatter_(mask, values.to(torch.float32))
    codes = masked_codes(mask, values, bits)
    dense = on_grid(codes, scale.to(torch.float32), zero_points(zero, scale, bits))
    return dense.masked_fill_(~mask, 0.0)
