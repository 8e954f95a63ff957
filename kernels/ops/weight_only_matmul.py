"""Product with a weight on a uniform grid: the codes stay packed, inputs are floating."""

import torch
from torch import Tensor

from autocomp.kernels._machine import SMALL_BATCH, lacks_packed_bf16, not_a_small_batch
from autocomp.kernels._op import operation
from autocomp.kernels.dense_matmul import by_blocks, dense_matmul
from autocomp.kernels.dequantize import dequantize, zero_points


@operation
def weight_only_matmul(
    inputs: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int
) -> Tensor:
    """Multiply by a packed weight: ``y = x Ŵᵀ``, ``Ŵ = scale · (code − zero)``.

    Args:
        inputs: (rows, in) of a floating dtype.
        codes: (out, ceil(in·bits/8)) uint8.
        scale: (out, groups) fp16.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code, 1 to 8.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    weight = dequantize(codes, scale, zero, bits, inputs.shape[1])
    return dense_matmul.reference(inputs, weight)


@weight_only_matmul.backend("blocks", priority=1)
def _blocks(
    inputs: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int
) -> Tensor:
    """Decode a block of rows of the weight, multiply by it, forget it."""

    def multiply(part: slice) -> Tensor:
        zeros = None if zero is None else zero[part]
        weight = dequantize(codes[part], scale[part], zeros, bits, inputs.shape[1])
        return dense_matmul(inputs, weight)

    return by_blocks(inputs, codes.shape[0], multiply)


def _not_int8(
    inputs: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int
) -> str | None:
    """Return why torch's product with int8 rows does not take these arguments."""
    rows, columns = inputs.shape
    if bits != 8 or scale.shape[1] != 1:
        return f"takes 8 bits and one scale a row, got {bits} bits and {scale.shape[1]} scales"
    if columns % 32:
        return f"takes inputs divisible by 32, got {columns}"
    return not_a_small_batch(rows)


@weight_only_matmul.backend(
    "int8pack",
    priority=10,
    devices=("cpu",),
    dtypes=("bfloat16",),
    rule=f"8 bits, one scale a row, in % 32 = 0, at most {SMALL_BATCH} rows",
    requires=lacks_packed_bf16,
    check=_not_int8,
)
def _int8pack(
    inputs: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int
) -> Tensor:
    """Multiply by the int8 codes themselves, ``aten._weight_int8pack_mm``.

    Scales are rounded to bf16. With zero points, ``s (128 − z) Σ x`` is added.
    """
    narrow = scale[:, 0].to(inputs.dtype)

    def multiply(part: slice) -> Tensor:
        signed = (codes[part] ^ 0x80).view(torch.int8)
        product: Tensor = torch.ops.aten._weight_int8pack_mm(inputs, signed, narrow[part])
        return product

    found = by_blocks(inputs, codes.shape[0], multiply)
    if zero is None:
        return found
    shift = (128.0 - zero_points(zero, scale, bits)) * scale
    sums = inputs.sum(dim=1, keepdim=True, dtype=torch.float32)
    return torch.addmm(found.to(torch.float32), sums, shift.T).to(inputs.dtype)
