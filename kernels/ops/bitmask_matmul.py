"""Product with a sparse weight of any pattern: one bit a weight, and the kept values."""

import torch
from torch import Tensor

from autocomp.kernels._masked import masked_weight
from autocomp.kernels._op import operation
from autocomp.kernels.bits import unpack_bits
from autocomp.kernels.dense_matmul import dense_matmul


@operation
def bitmask_matmul(
    inputs: Tensor,
    mask: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> Tensor:
    """Multiply by the kept weights of a mask: decoded, then a dense product.

    Args:
        inputs: (rows, in) of a floating dtype.
        mask: (out, ceil(in/8)) uint8, one bit a weight.
        values: The kept weights in row-major order: (kept,) floating, or (bytes,) packed codes.
        scale: (out, groups) fp16; ``None`` where the values are floating.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code; not read where the values are floating.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    keep = unpack_bits(mask, 1, inputs.shape[1]).view(torch.bool)
    return dense_matmul(inputs, masked_weight(keep, values, scale, zero, bits))
