"""Products with floating-point codes: what the operations on 4 and 8 bits share.

A code is moved into the fields of a half-precision number, which is the same number times a power
of two: the difference of the biases, put right once, in the sums. So decoding takes shifts and
masks, no table and no conversion, and subnormal codes are subnormal halves.
"""

import functools

import torch
from torch import Tensor

from autocomp.kernels._decode import apart, byte_codes, gather_codes, unit_words
from autocomp.kernels._triton import (
    cdiv,
    jit,
    launch,
    options_of,
    partial_outputs,
    power_of_two,
    tl,
)
from autocomp.kernels.dense_matmul import by_blocks, dense_matmul
from autocomp.kernels.float_codes import CODES, float_weight


def exact_product(inputs: Tensor, step: Tensor | None, weight: Tensor) -> Tensor:
    """Return ``t x Ŵᵀ``, (rows, out) in the dtype of the inputs, computed in fp32."""
    sums = inputs.to(torch.float32) @ weight.T
    return (sums if step is None else sums * step).to(inputs.dtype)


def block_product(
    inputs: Tensor,
    step: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    base: Tensor | None,
    code: str = "e2m1",
) -> Tensor:
    """Return ``t x Ŵᵀ`` by decoding a block of rows of the weight at a time."""
    columns = inputs.shape[1]

    def multiply(part: slice) -> Tensor:
        rows = None if base is None else base[part]
        weight = float_weight(codes[part], scale[part], rows, columns, code)
        if step is None:
            return dense_matmul(inputs, weight)
        return exact_product(inputs, step, weight)

    return by_blocks(inputs, len(codes), multiply)


def why_no_tiles(
    inputs: Tensor,
    step: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    base: Tensor | None,
    code: str = "e2m1",
) -> str | None:
    """Return why the Triton kernels do not take these arguments."""
    read = (inputs, codes, scale, *(side for side in (step, base) if side is not None))
    if not all(side.is_contiguous() for side in read):
        return "takes contiguous tensors"
    if step is not None and step.dtype != torch.float32:
        return f"takes steps in float32, got {step.dtype}"
    return None if inputs.numel() and codes.numel() else "takes at least one row"


def _in_eight_bits(inputs: Tensor, step: Tensor | None) -> bool:
    """Return whether to multiply in 8 bits: not for float32, whose digits the sums would lose."""
    rounded = step is not None and inputs.dtype != torch.float32
    return rounded and _multiplies_eight_bits(inputs.device)


@functools.cache
def _multiplies_eight_bits(device: torch.device) -> bool:
    """Return whether tensor cores multiply E4M3; interpreted and recorded kernels do."""
    if device.type != "cuda":
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


@jit
def _half_pairs(
    words: tl.tensor, PLACE: tl.constexpr, BITS: tl.constexpr, M: tl.constexpr
) -> tl.tensor:
    """Return the codes at two places of every word, 16 bits apart, fp32 and not yet scaled.

    Args:
        words: (n, units) uint32, eight codes or four.
        PLACE: Which code of the lower half; the other one is as far into the upper half.
        BITS: Bits a code.
        M: Bits of its mantissa.
    """
    to_sign: tl.constexpr = 16 - BITS - PLACE * BITS
    to_size: tl.constexpr = 10 - M - PLACE * BITS
    SIZES: tl.constexpr = (((1 << (BITS - 1)) - 1) << (10 - M)) * 0x10001
    size = (words << to_size) if to_size >= 0 else (words >> -to_size)
    pair = ((words << to_sign) & 0x80008000) | (size & SIZES)
    low = (pair & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    high = (pair >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@jit
def _halves(codes: tl.tensor, BITS: tl.constexpr, M: tl.constexpr) -> tl.tensor:
    """Return codes, int32, as half-precision numbers that are not yet scaled."""
    SIZES: tl.constexpr = (1 << (BITS - 1)) - 1
    bits = ((codes & (SIZES + 1)) << (16 - BITS)) | ((codes & SIZES) << (10 - M))
    return bits.to(tl.uint16).to(tl.float16, bitcast=True)


@jit
def _eights(codes: tl.tensor, BITS: tl.constexpr, M: tl.constexpr) -> tl.tensor:
    """Return codes, int32, as 8-bit floats; those of 4 bits as E4M3 that is not yet scaled."""
    if BITS == 4:
        codes = ((codes & 8) << 4) | ((codes & 7) << 2)
    if M == 2:
        found = codes.to(tl.uint8).to(tl.float8e5, bitcast=True)
    else:
        found = codes.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    return found


@jit
def _steps(places: tl.tensor, keep: tl.tensor) -> tl.tensor:
    """Return scales, stored as they are or as the exponent of a power of two, fp32."""
    stored = tl.load(places, mask=keep, other=0)
    if stored.dtype == tl.uint8:
        found = (stored.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    else:
        found = stored.to(tl.float32)
    return found


@jit
def _float_gemv_kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    step: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    base: tl.tensor,
    outputs: tl.tensor,
    columns: int,
    features: int,
    group_size: int,
    row_bytes: int,
    BITS: tl.constexpr,
    M: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One row of inputs: a share of it stays in registers while rows of codes stream past.

    Sums are fp32; a scale multiplies the sum of its group.
    """
    split = tl.program_id(1)
    column = split * BLOCK_K + tl.arange(0, BLOCK_K)
    value = tl.load(inputs + column, mask=column < columns, other=0.0).to(tl.float32)
    many: tl.constexpr = 32 // BITS
    vectors = apart(value, BITS)
    parts: tl.constexpr = BLOCK_K // GROUP
    group = (split * BLOCK_K + tl.arange(0, parts) * GROUP) // group_size
    inside = (group < columns // group_size)[None, :]
    unit = split * (BLOCK_K // many) + tl.arange(0, BLOCK_K // many)
    BIAS: tl.constexpr = (1 << (BITS - M - 2)) - 1
    FACTOR: tl.constexpr = 1 << (15 - BIAS)
    factor = FACTOR if step is None else FACTOR * tl.load(step)
    for block in range(SHARE):
        n = (tl.program_id(0) * SHARE + block) * BLOCK_N + tl.arange(0, BLOCK_N)
        row = tl.minimum(n, features - 1).to(tl.int64)
        starts = codes + row[:, None] * row_bytes
        keep = None if EVEN else (unit < columns // many)[None, :] & (n < features)[:, None]
        words, _ = unit_words(starts, unit[None, :], keep, BITS)
        terms = tl.zeros((BLOCK_N, BLOCK_K // many), dtype=tl.float32)
        for place in tl.static_range(many // 2):
            low, high = _half_pairs(words, place, BITS, M)
            terms += low * vectors[place][None, :]
            terms += high * vectors[place + many // 2][None, :]
        sums = tl.sum(tl.reshape(terms, (BLOCK_N, parts, GROUP // many)), axis=2)
        places = scale + row[:, None] * (columns // group_size) + group[None, :]
        result = tl.sum(sums * _steps(places, inside), axis=1) * factor
        if base is not None:
            result *= tl.load(base + row).to(tl.float32)
        place = outputs + split * features + n
        tl.store(place, result.to(outputs.dtype.element_ty), mask=n < features)


@jit
def _float_tile_kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    step: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    base: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    group_size: int,
    row_bytes: int,
    BITS: tl.constexpr,
    M: tl.constexpr,
    BYTES: tl.constexpr,
    EIGHT: tl.constexpr,
    PER_ROW: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Many rows: a tile of codes times a tile of inputs, in half precision or in 8 bits.

    Both hold the codes exactly. The scale multiplies the sums of a block, which lies in one
    group, so that 8-bit products, whose sums lose digits, are added up in fp32 block by block.
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
            place = starts + (group * (group_size // many) + byte)[None, :]
            code = byte_codes(tl.load(place, mask=keep, other=0), BITS)
        else:
            keep = live[:, None] & inside[None, :]
            code = gather_codes(starts, column[None, :], keep, BITS)
        if EIGHT:
            sums = tl.dot(_eights(code, BITS, M), values.to(tl.float8e4nv))
        else:
            weight = _halves(code, BITS, M)
            if values.dtype != tl.float16:
                weight = weight.to(tl.float32).to(values.dtype)
            sums = tl.dot(weight, values, input_precision="ieee")
        found += sums * _steps(scale + wide * groups + group, live)[:, None]
    BIAS: tl.constexpr = (1 << (BITS - M - 2)) - 1
    AS_READ: tl.constexpr = 15 if not EIGHT else 7 if BITS == 4 else BIAS
    found *= 1 << (AS_READ - BIAS)
    if base is not None:
        found *= tl.load(base + n, mask=live, other=0.0).to(tl.float32)[:, None]
    if step is not None:
        if PER_ROW:
            found *= tl.load(step + m, mask=taken, other=0.0)[None, :]
        else:
            found *= tl.load(step)
    place = outputs + (split * rows + m[None, :]).to(tl.int64) * features + n[:, None]
    tl.store(place, found.to(outputs.dtype.element_ty), mask=live[:, None] & taken[None, :])


def _has_whole_words(columns: int, group_size: int) -> bool:
    """Return whether rows are whole words of codes, and groups a power of two or whole rows."""
    regular = group_size == columns or group_size == power_of_two(group_size) >= 16
    return columns % 16 == 0 and regular


def tile_product(
    inputs: Tensor,
    step: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    base: Tensor | None,
    code: str = "e2m1",
) -> Tensor:
    """Return ``t x Ŵᵀ`` by Triton: words of codes times one row of inputs, tiles times more."""
    numbers = CODES[code]
    (rows, columns), (features, groups) = inputs.shape, scale.shape
    group_size = columns // groups
    sizes = {"rows": rows, "features": features, "columns": columns}
    sizes["bytes"] = inputs.element_size()
    small = rows == 1 and _has_whole_words(columns, group_size)
    options = options_of(f"fp{numbers.bits}_{'gemv' if small else 'tile'}", inputs.device, **sizes)
    width = options["BLOCK_K"] = min(options["BLOCK_K"], power_of_two(columns))
    split = cdiv(columns, width) if small else options["SPLIT"]
    outputs = partial_outputs(inputs, features, split)
    read = (inputs, step, codes, scale, base, outputs)
    widths = (columns, features, group_size, codes.shape[1])
    fields = {"BITS": numbers.bits, "M": numbers.mantissa_bits}
    if small:
        launch(
            _float_gemv_kernel,
            (cdiv(features, options["BLOCK_N"] * options["SHARE"]), split),
            *(*read, *widths),
            **{"GROUP": min(width, power_of_two(group_size)), "EVEN": columns % width == 0},
            **{**fields, **options},
        )
    else:
        eight = _in_eight_bits(inputs, step)
        options["BLOCK_K"] = max(32 if eight else 16, min(width, power_of_two(group_size)))
        launch(
            _float_tile_kernel,
            (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"]), split),
            *(*read, rows, *widths),
            **{"BYTES": group_size * numbers.bits % 8 == 0, "EIGHT": eight},
            **{"PER_ROW": step is not None and step.numel() > 1},
            **{**fields, **options},
        )
    return outputs.sum(dim=0).to(inputs.dtype) if split > 1 else outputs[0]
