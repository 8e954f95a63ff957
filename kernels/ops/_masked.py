"""The kept values of a mask back in their places, floating or on a grid."""

import torch
from torch import Tensor

from autocomp.kernels.bits import packed_bytes, unpack_bits
from autocomp.kernels.dequantize import on_grid, zero_points


def masked_codes(mask: Tensor, values: Tensor, bits: int, skip: int = 0) -> Tensor:
    """Return codes (out, in) uint8 of a mask (out, in) bool; 0 where nothing is kept.

    Args:
        mask: True is kept.
        values: (bytes,) uint8, the kept codes packed in row-major order.
        bits: Bits a code.
        skip: Codes before the first that is kept.
    """
    found = unpack_bits(values[None], bits, values.numel() * 8 // bits)[0, skip:]
    codes = torch.zeros(mask.shape, dtype=torch.uint8, device=mask.device)
    return codes.masked_scatter_(mask, found)


def masked_weight(
    mask: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
    skip: int = 0,
) -> Tensor:
    """Return the weight (out, in) fp32 of a mask (out, in) bool; removed weights are 0.

    Args:
        mask: True is kept.
        values: The kept weights in row-major order: (kept,) floating, or (bytes,) packed codes.
        scale: (out, groups) fp16; ``None`` where the values are floating.
        zero: Packed zero points, or ``None`` for ``2^(bits−1)``.
        bits: Bits a code; not read where the values are floating.
        skip: Values before the first that is kept.
    """
    if scale is None:
        dense = torch.zeros(mask.shape, device=mask.device)
        return dense.masked_scatter_(mask, values[skip:].to(torch.float32))
    codes = masked_codes(mask, values, bits, skip)
    dense = on_grid(codes, scale.to(torch.float32), zero_points(zero, scale, bits))
    return dense.masked_fill_(~mask, 0.0)


def masked_rows(
    mask: Tensor, start: int, part: slice, values: tuple[Tensor, Tensor | None, Tensor | None, int]
) -> Tensor:
    """Return some rows of the weight of a mask, (n, in) fp32.

    Args:
        mask: (n, in) bool of these rows.
        start: How many weights the rows before them keep.
        part: Which rows of the weight they are.
        values: Values, scale, zero points and bits of the whole weight.
    """
    kept, scale, zero, bits = values
    stop = start + int(mask.sum())
    if scale is None:
        return masked_weight(mask, kept[start:stop], None, None, bits)
    first = start // 8 * 8  # of codes; eight of them fill whole bytes
    codes = kept[first * bits // 8 : packed_bytes(stop, bits)]
    zeros = None if zero is None else zero[part]
    return masked_weight(mask, codes, scale[part], zeros, bits, start - first)
