"""Product with an N:M sparse weight: positions within each pattern, and the kept values."""

import torch
from torch import Tensor

from autocomp.kernels._masked import masked_weight
from autocomp.kernels._op import operation
from autocomp.kernels.bits import unpack_bits
from autocomp.kernels.dense_matmul import dense_matmul


def nm_mask(index: Tensor, keep: int, m: int, columns: int) -> Tensor:
    """Return the mask (out, columns) bool of packed positions; True is kept.

    Args:
        index: (out, bytes) uint8: ``columns / m · keep`` packed positions a row.
        keep: Weights kept of every ``m``.
        m: Pattern length.
        columns: Inputs of the weight.
    """
    positions = unpack_bits(index, (m - 1).bit_length(), columns // m * keep)
    patterns = positions.view(-1, keep).to(torch.int64)
    mask = torch.zeros((patterns.shape[0], m), dtype=torch.bool, device=index.device)
    return mask.scatter_(1, patterns, True).view(index.shape[0], columns)


@operation
def nm_matmul(
    inputs: Tensor,
    index: Tensor,
    pattern: tuple[int, int],
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> Tensor:
    """Multiply by the kept weights of an N:M pattern: decoded, then a dense product.

    Args:
        inputs: (rows, in) of a floating dtype.
        index: (out, bytes) uint8, packed ascending positions.
        pattern: Weights kept, of how many.
        values: The kept weights in row-major order: (kept,) floating, or (bytes,) packed codes.
        scale: (out, groups) fp16; ``None`` where the values are floating.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code; not read where the values are floating.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    keep = nm_mask(index, *pattern, inputs.shape[1])
    return dense_matmul(inputs, masked_weight(keep, values, scale, zero, bits))
