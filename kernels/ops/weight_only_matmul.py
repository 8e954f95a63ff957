"""Product with a weight on a uniform grid: the codes stay packed, inputs are floating."""

import torch
from torch import Tensor

from autocomp.kernels._decode import byte_codes, gather_codes, word_code
from autocomp.kernels._machine import SMALL_BATCH, lacks_packed_bf16, not_a_small_batch
from autocomp.kernels._op import operation
from autocomp.kernels._triton import (
    cdiv,
    jit,
    launch,
    options_of,
    partial_outputs,
    power_of_two,
    tl,
    triton_backend,
)
from autocomp.kernels.dense_matmul import by_blocks, dense_matmul
from autocomp.kernels.dequantize import dequantize, zero_points

GEMV_ROWS = 4
"""Rows of input up to which products with words of codes beat tiles."""


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


@jit
def _gemv_kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    outputs: tl.tensor,
    columns: int,
    features: int,
    group_size: int,
    row_bytes: int,
    zero_bytes: int,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    UNIT: tl.constexpr,
    WORDS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
) -> None:
    """Few rows: whole words of codes, sums in fp32, each scale once a unit.

    A unit is the least number of codes that fill whole words: ``UNIT`` codes in ``WORDS`` words
    of 32 bits. A code is not shifted down to its value: it is masked where it lies, and the input
    is multiplied by the power of two instead, which the rows of the program share.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    m = tl.arange(0, BLOCK_ROWS)
    live = n < features
    groups = columns // group_size
    rows_of_words = tl.cast(codes, tl.pointer_type(tl.uint32))
    rows_of_words += n.to(tl.int64)[:, None] * (row_bytes // 4)
    units = columns // UNIT
    part = tl.cdiv(tl.cdiv(units, SPLIT), BLOCK_U) * BLOCK_U
    stop = tl.minimum(part * (split + 1), units)
    found = tl.zeros((BLOCK_ROWS, BLOCK_N, BLOCK_U), dtype=tl.float32)
    for start in range(part * split, stop, BLOCK_U):
        unit = start + tl.arange(0, BLOCK_U)
        keep = live[:, None] & (unit < stop)[None, :]
        words = rows_of_words + (unit * WORDS)[None, :]
        vectors = inputs + m[:, None] * columns + (unit * UNIT)[None, :]
        taken = (m < ROWS)[:, None] & (unit < stop)[None, :]
        word = tl.load(words, mask=keep, other=0)
        sums = tl.zeros((BLOCK_ROWS, BLOCK_N, BLOCK_U), dtype=tl.float32)
        total = tl.zeros((BLOCK_ROWS, BLOCK_U), dtype=tl.float32)
        for place in tl.static_range(UNIT):
            value = tl.load(vectors + place, mask=taken, other=0.0).to(tl.float32)
            total += value
            code, word, factor = word_code(words, word, keep, place, BITS)
            value *= factor
            sums += code.to(tl.float32)[None, :, :] * value[:, None, :]
        group = unit * UNIT // group_size
        places = n[:, None] * groups + group[None, :]
        step = tl.load(scale + places, mask=keep, other=0.0).to(tl.float32)
        if zero is None:
            sums -= total[:, None, :] * (1 << (BITS - 1))
        else:
            starts = zero + n.to(tl.int64)[:, None] * zero_bytes
            middle = gather_codes(starts, group[None, :], keep, BITS).to(tl.float32)
            sums -= total[:, None, :] * middle[None, :, :]
        found += sums * step[None, :, :]
    result = tl.sum(found, axis=2)
    place = outputs + (split * ROWS + m[:, None]) * features + n[None, :]
    tl.store(place, result.to(outputs.dtype.element_ty), mask=(m < ROWS)[:, None] & live[None, :])


@jit
def _tile_kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    group_size: int,
    row_bytes: int,
    zero_bytes: int,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Many rows: a tile of codes, exact in half precision, times a tile of inputs.

    The scale multiplies the sums of a block, which lies in one group; the zero point times the
    sum of the inputs is taken off them.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    live, taken = n < features, m < rows
    wide = n.to(tl.int64)
    starts = codes + wide[:, None] * row_bytes
    groups = columns // group_size
    blocks = tl.cdiv(group_size, BLOCK_K)
    part = tl.cdiv(groups * blocks, SPLIT)
    stop = tl.minimum(part * (split + 1), groups * blocks)
    found = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for block in range(part * split, stop):
        group = block // blocks
        first = block % blocks * BLOCK_K
        offset = first + tl.arange(0, BLOCK_K)
        column = group * group_size + offset
        inside = offset < group_size
        vectors = inputs + m[None, :].to(tl.int64) * columns + column[:, None]
        values = tl.load(vectors, mask=inside[:, None] & taken[None, :], other=0.0)
        if BYTES:
            many: tl.constexpr = 8 // BITS
            byte = first // many + tl.arange(0, BLOCK_K // many)
            keep = live[:, None] & (byte < group_size // many)[None, :]
            place = starts + (group * group_size // many + byte)[None, :]
            code = byte_codes(tl.load(place, mask=keep, other=0), BITS)
        else:
            keep = live[:, None] & inside[None, :]
            code = gather_codes(starts, column[None, :], keep, BITS)
        sums = tl.dot(code.to(values.dtype), values, input_precision="ieee")
        total = tl.sum(values.to(tl.float32), axis=0)
        if zero is None:
            sums -= total[None, :] * (1 << (BITS - 1))
        else:
            here = tl.zeros((BLOCK_N,), dtype=tl.int32) + group
            middle = gather_codes(zero + wide * zero_bytes, here, live, BITS)
            sums -= total[None, :] * middle.to(tl.float32)[:, None]
        step = tl.load(scale + wide * groups + group, mask=live, other=0.0)
        found += sums * step.to(tl.float32)[:, None]
    place = outputs + (split * rows + m[None, :]).to(tl.int64) * features + n[:, None]
    tl.store(place, found.to(outputs.dtype.element_ty), mask=live[:, None] & taken[None, :])


def _not_packed_rows(
    inputs: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int
) -> str | None:
    """Return why a Triton kernel does not take these arguments."""
    if not (inputs.is_contiguous() and codes.is_contiguous() and scale.is_contiguous()):
        return "takes contiguous tensors"
    return None if inputs.numel() and codes.numel() else "takes at least one row"


@triton_backend(weight_only_matmul, rule="contiguous tensors", check=_not_packed_rows)
def _triton(
    inputs: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int
) -> Tensor:
    """Decode on the way: words of codes times few rows, tiles times more."""
    (rows, columns), (features, groups) = inputs.shape, scale.shape
    group_size = columns // groups
    sizes = {"rows": rows, "features": features, "columns": columns}
    small = rows <= GEMV_ROWS and columns % 32 == 0 and group_size % 32 == 0
    options = options_of(f"weight_only_{'gemv' if small else 'tile'}", inputs.device, **sizes)
    split = options["SPLIT"]
    outputs = partial_outputs(inputs, features, split)
    widths = (columns, features, group_size, codes.shape[1], 0 if zero is None else zero.shape[1])
    if small:
        unit = 32 // bits if 32 % bits == 0 else 32
        launch(
            _gemv_kernel,
            (cdiv(features, options["BLOCK_N"]), split),
            *(inputs, codes, scale, zero, outputs, *widths),
            **{"BITS": bits, "ROWS": rows, "BLOCK_ROWS": power_of_two(rows)},
            **{"UNIT": unit, "WORDS": unit * bits // 32},
            **options,
        )
    else:
        options["BLOCK_K"] = max(16, min(options["BLOCK_K"], power_of_two(group_size)))
        launch(
            _tile_kernel,
            (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"]), split),
            *(inputs, codes, scale, zero, outputs, rows, *widths),
            **{"BITS": bits, "BYTES": 8 % bits == 0 and group_size * bits % 8 == 0},
            **options,
        )
    return outputs.sum(dim=0).to(inputs.dtype) if split > 1 else outputs[0]
