"""Product of integers: inputs rounded to 8 bits, a weight of 8 bits with one scale a row."""

import torch
from torch import Tensor

from autocomp.kernels._machine import (
    SMALL_BATCH,
    lacks_int8_products,
    lacks_packed_bf16,
    not_a_small_batch,
)
from autocomp.kernels._op import operation


@operation
def int8_matmul(inputs: Tensor, step: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Multiply rounded inputs by a symmetric 8-bit weight: ``y = t s Σ p (q − 128)``.

    Args:
        inputs: Codes p (rows, in) as whole numbers in ``−127 … 127``, of a floating dtype that
            holds them exactly: the dtype of the outputs.
        step: t (rows, 1) or (1,) fp32, what a code of the input stands for.
        codes: q (out, in) uint8.
        scale: s (out, 1) fp16.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    weight = codes.to(torch.float32).sub_(128)
    sums = inputs.to(torch.float32) @ weight.T
    return _scaled(sums, step, scale).to(inputs.dtype)


def _scaled(sums: Tensor, step: Tensor, scale: Tensor) -> Tensor:
    """Return ``t s`` times the sums, fp32."""
    return sums.to(torch.float32).mul_(scale[:, 0].to(torch.float32)).mul_(step)


def _signed(codes: Tensor) -> Tensor:
    """Return ``q − 128`` (out, in) int8."""
    return (codes ^ 0x80).view(torch.int8)


@int8_matmul.backend("int_mm", priority=20, devices=("cpu",), requires=lacks_int8_products)
def _int_mm(inputs: Tensor, step: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Sum in 32-bit integers, exactly: ``torch._int_mm``."""
    sums = torch._int_mm(inputs.to(torch.int8), _signed(codes).T)
    return _scaled(sums, step, scale).to(inputs.dtype)


def _not_packed(inputs: Tensor, step: Tensor, codes: Tensor, scale: Tensor) -> str | None:
    """Return why torch's product with int8 rows does not take these arguments."""
    rows, columns = inputs.shape
    if columns % 32:
        return f"takes inputs divisible by 32, got {columns}"
    return not_a_small_batch(rows)


@int8_matmul.backend(
    "int8pack",
    priority=10,
    devices=("cpu",),
    dtypes=("bfloat16",),
    rule=f"in % 32 = 0, at most {SMALL_BATCH} rows",
    requires=lacks_packed_bf16,
    check=_not_packed,
)
def _int8pack(inputs: Tensor, step: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Multiply bf16, which holds the codes of the input exactly: ``aten._weight_int8pack_mm``."""
    sums = torch.ops.aten._weight_int8pack_mm(
        inputs, _signed(codes), torch.ones_like(scale[:, 0], dtype=inputs.dtype)
    )
    return _scaled(sums, step, scale).to(inputs.dtype)
