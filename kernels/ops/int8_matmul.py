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
from autocomp.kernels._triton import (
    cdiv,
    jit,
    launch,
    options_of,
    partial_outputs,
    tl,
    triton_backend,
)


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


@int8_matmul.operator
def _shape(inputs: Tensor, step: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return inputs.new_empty((inputs.shape[0], codes.shape[0]))


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


@jit
def _int8_kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    step: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    PER_ROW: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Sums of a tile in 32-bit integers, exact; both scales multiply them once, at the end."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    live, taken = n < features, m < rows
    blocks = tl.cdiv(columns, BLOCK_K)
    part = tl.cdiv(blocks, SPLIT)
    stop = tl.minimum(part * (split + 1), blocks)
    sums = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    for block in range(part * split, stop):
        column = block * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = column < columns
        vectors = inputs + m[None, :].to(tl.int64) * columns + column[:, None]
        value = tl.load(vectors, mask=inside[:, None] & taken[None, :], other=0.0).to(tl.int8)
        weights = codes + n[:, None].to(tl.int64) * columns + column[None, :]
        code = tl.load(weights, mask=live[:, None] & inside[None, :], other=128)
        sums = tl.dot((code ^ 128).to(tl.int8, bitcast=True), value, sums)
    found = sums.to(tl.float32) * tl.load(scale + n, mask=live, other=0.0).to(tl.float32)[:, None]
    if PER_ROW:
        found *= tl.load(step + m, mask=taken, other=0.0)[None, :]
    else:
        found *= tl.load(step)
    place = outputs + (split * rows + m[None, :]).to(tl.int64) * features + n[:, None]
    tl.store(place, found.to(outputs.dtype.element_ty), mask=live[:, None] & taken[None, :])


def _not_contiguous(inputs: Tensor, step: Tensor, codes: Tensor, scale: Tensor) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    if not (inputs.is_contiguous() and codes.is_contiguous() and step.dtype == torch.float32):
        return "takes contiguous codes and steps in float32"
    return None if inputs.numel() and codes.numel() else "takes at least one row"


@triton_backend(int8_matmul, rule="contiguous codes", check=_not_contiguous)
def _triton(inputs: Tensor, step: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Multiply tiles of integers, scaled as they are written."""
    (rows, columns), features = inputs.shape, codes.shape[0]
    sizes = {"rows": rows, "features": features, "columns": columns}
    options = options_of("int8", inputs.device, **sizes)
    split = options["SPLIT"]
    outputs = partial_outputs(inputs, features, split)
    launch(
        _int8_kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"]), split),
        *(inputs, step, codes, scale, outputs, rows, columns, features),
        **{"PER_ROW": step.numel() > 1},
        **options,
    )
    return outputs.sum(dim=0).to(inputs.dtype) if split > 1 else outputs[0]
