"""Product with a weight on a uniform grid: the codes stay packed, inputs are floating."""

import torch
from torch import Tensor

from autocomp.kernels._decode import (
    byte_codes,
    gather_codes,
    place_code,
    unit_vectors,
    unit_words,
    whole_bytes,
)
from autocomp.kernels._machine import SMALL_BATCH, lacks_packed_bf16, not_a_small_batch
from autocomp.kernels._op import operation
from autocomp.kernels._tile import has_whole_groups
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


@weight_only_matmul.operator
def _shape(inputs: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    return inputs.new_empty((inputs.shape[0], codes.shape[0]))


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
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One row of inputs: a share of it stays in registers while rows of codes stream past.

    Sums are fp32. A scale multiplies the sum of its group; the zero point times the sum of the
    inputs is taken off it.
    """
    split = tl.program_id(1)
    column = split * BLOCK_K + tl.arange(0, BLOCK_K)
    value = tl.load(inputs + column, mask=column < columns, other=0.0).to(tl.float32)
    parts: tl.constexpr = BLOCK_K // GROUP
    total = tl.sum(tl.reshape(value, (parts, GROUP)), axis=1)
    group = (split * BLOCK_K + tl.arange(0, parts) * GROUP) // group_size
    inside = (group < columns // group_size)[None, :]
    vectors = unit_vectors(value, column, BITS)
    many: tl.constexpr = 4 if BITS == 8 else 8
    unit = split * (BLOCK_K // many) + tl.arange(0, BLOCK_K // many)
    for block in range(SHARE):
        n = (tl.program_id(0) * SHARE + block) * BLOCK_N + tl.arange(0, BLOCK_N)
        row = tl.minimum(n, features - 1).to(tl.int64)[:, None]
        starts = codes + row * row_bytes
        keep = None if EVEN else (unit < columns // many)[None, :] & (n < features)[:, None]
        low, high = unit_words(starts, unit[None, :], keep, BITS)
        terms = tl.zeros((BLOCK_N, BLOCK_K // many), dtype=tl.float32)
        for place in tl.static_range(many):
            terms += place_code(low, high, place, BITS) * vectors[place][None, :]
        sums = tl.sum(tl.reshape(terms, (BLOCK_N, parts, GROUP // many)), axis=2)
        if zero is None:
            sums -= total[None, :] * (1 << (BITS - 1))
        else:
            middle = gather_codes(zero + row * zero_bytes, group[None, :], inside, BITS)
            sums -= total[None, :] * middle.to(tl.float32)
        step = tl.load(
            scale + row * (columns // group_size) + group[None, :], mask=inside, other=0.0
        )
        result = tl.sum(sums * step.to(tl.float32), axis=1)
        place = outputs + split * features + n
        tl.store(place, result.to(outputs.dtype.element_ty), mask=n < features)


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
    sizes["bytes"] = inputs.element_size()
    small = rows == 1 and has_whole_groups(columns, group_size)
    options = options_of(f"weight_only_{'gemv' if small else 'tile'}", inputs.device, **sizes)
    width = options["BLOCK_K"] = min(options["BLOCK_K"], power_of_two(columns))
    split = cdiv(columns, width) if small else options["SPLIT"]
    outputs = partial_outputs(inputs, features, split)
    widths = (columns, features, group_size, codes.shape[1], 0 if zero is None else zero.shape[1])
    if small:
        launch(
            _gemv_kernel,
            (cdiv(features, options["BLOCK_N"] * options["SHARE"]), split),
            *(inputs, codes, scale, zero, outputs, *widths),
            **{"BITS": bits, "GROUP": min(width, power_of_two(group_size))},
            **{"EVEN": columns % width == 0},
            **options,
        )
    else:
        options["BLOCK_K"] = max(16, min(width, power_of_two(group_size)))
        launch(
            _tile_kernel,
            (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"]), split),
            *(inputs, codes, scale, zero, outputs, rows, *widths),
            **{"BITS": bits, "BYTES": whole_bytes(group_size, bits)},
            **options,
        )
    return outputs.sum(dim=0).to(inputs.dtype) if split > 1 else outputs[0]
