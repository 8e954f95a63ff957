"""A matrix of scaled signs times a vector, by table look-ups instead of multiplications.

Inputs are taken eight at a time. All 256 signed sums of eight inputs make a table, so a byte of a
sign plane is one look-up; the sums of a plane over a group are multiplied by its scale, once.

On a GPU one row of inputs is looked up four at a time, in a table of sixteen sums, half a byte of
signs a look-up: a table of 256 would not pay for itself within a program. More rows share decoded
tiles, which tensor cores multiply faster than tables can be read.

Reference: Park et al. 2022, LUT-GEMM, https://arxiv.org/abs/2206.09557
"""

import torch
from torch import Tensor

from autocomp.kernels._decode import block_codes, byte_codes
from autocomp.kernels._op import operation
from autocomp.kernels._tile import (
    add_product,
    block_columns,
    block_rows,
    group_block,
    has_whole_groups,
    no_sums,
    write_sums,
)
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

BYTE = 8


@operation
def lut_gemm(inputs: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Multiply by scaled signs: ``y = x Ŵᵀ`` for ``ŵ = Σ_i scale_i b_i + offset``.

    Sums are fp32, fp64 where the inputs are.

    Args:
        inputs: x (n, in) of a floating dtype.
        planes: Signs (out, bits, ceil(in/8)) uint8, a set bit for +1, the lowest bit first.
        scale: (out, groups, bits); a group is ``in / groups`` consecutive inputs, of whole bytes
            where there are several.
        offset: (out, groups) or ``None``.

    Returns:
        (n, out) in the dtype of the inputs.

    Raises:
        ValueError: If a group does not consist of whole bytes.
    """
    count, width = inputs.shape
    rows, bits, length = planes.shape
    groups = scale.shape[1]
    if groups > 1 and width // groups % BYTE:
        raise ValueError(f"a group of {width // groups} inputs is not made of whole bytes.")
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    padded = torch.nn.functional.pad(wide, (0, length * BYTE - width))
    tables = _tables(padded.view(count, length, BYTE))
    found = wide.new_zeros(count, rows)
    for plane in range(bits):
        index = planes[:, plane].T.long().expand(count, -1, -1)
        sums = tables.gather(2, index).view(count, groups, -1, rows).sum(dim=2)
        found += (sums * scale[:, :, plane].to(wide).T).sum(dim=1)
    if offset is not None:
        found += wide.view(count, groups, -1).sum(dim=2) @ offset.to(wide).T
    return found.to(inputs.dtype)


@lut_gemm.operator
def _shape(inputs: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    return inputs.new_empty((inputs.shape[0], planes.shape[0]))


def _tables(parts: Tensor) -> Tensor:
    """Return all signed sums of eight inputs, (n, bytes, 256), of inputs (n, bytes, 8).

    Each input doubles the table: the entries so far, and the same with its sign turned to +.
    """
    table = -parts.sum(dim=2, keepdim=True)
    for bit in range(BYTE):
        table = torch.cat([table, table + 2 * parts[:, :, bit, None]], dim=2)
    return table


@jit
def _table(value: tl.tensor) -> tl.tensor:
    """Return all signed sums of four inputs, (16, k/4) fp32, of (k,) fp32."""
    even, odd = tl.split(tl.reshape(value, (value.shape[0] // 2, 2)))
    one, three = tl.split(tl.reshape(even, (even.shape[0] // 2, 2)))
    two, four = tl.split(tl.reshape(odd, (odd.shape[0] // 2, 2)))
    signs = tl.arange(0, 16)[:, None]
    found = one[None, :] * ((signs & 1) * 2 - 1) + two[None, :] * ((signs >> 1 & 1) * 2 - 1)
    found += three[None, :] * ((signs >> 2 & 1) * 2 - 1) + four[None, :] * ((signs >> 3) * 2 - 1)
    return found


@jit
def _table_kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    planes: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    outputs: tl.tensor,
    columns: int,
    features: int,
    group_size: int,
    row_bytes: int,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One row of inputs: half a byte of signs is one look-up among the sums of its share."""
    split = tl.program_id(1)
    column = split * BLOCK_K + tl.arange(0, BLOCK_K)
    value = tl.load(inputs + column, mask=column < columns, other=0.0).to(tl.float32)
    parts: tl.constexpr = BLOCK_K // GROUP
    total = tl.sum(tl.reshape(value, (parts, GROUP)), axis=1)
    table = _table(value)
    groups = columns // group_size
    group = ((split * BLOCK_K + tl.arange(0, parts) * GROUP) // group_size)[None, :]
    byte = split * (BLOCK_K // 8) + tl.arange(0, BLOCK_K // 8)
    for block in range(SHARE):
        n = (tl.program_id(0) * SHARE + block) * BLOCK_N + tl.arange(0, BLOCK_N)
        live = n < features
        row = n.to(tl.int64)[:, None]
        keep = live[:, None] & (byte < row_bytes)[None, :]
        inside = live[:, None] & (group < groups)
        found = tl.zeros((BLOCK_N, parts), dtype=tl.float32)
        for plane in tl.static_range(BITS):
            places = planes + (row * BITS + plane) * row_bytes + byte[None, :]
            signs = byte_codes(tl.load(places, mask=keep, other=0), 4)
            terms = tl.reshape(tl.gather(table, signs, 0), (BLOCK_N, parts, GROUP // 4))
            step = tl.load(scale + (row * groups + group) * BITS + plane, mask=inside, other=0.0)
            found += tl.sum(terms, axis=2) * step.to(tl.float32)
        if offset is not None:
            shift = tl.load(offset + row * groups + group, mask=inside, other=0.0)
            found += total[None, :] * shift.to(tl.float32)
        place = outputs + split * features + n
        tl.store(place, tl.sum(found, axis=1).to(outputs.dtype.element_ty), mask=live)


@jit
def _kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    planes: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    groups: int,
    row_bytes: int,
    BITS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Planes of signs add up to a tile of the weight, which lies in one group."""
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    live = n < features
    group_size = columns // groups
    starts = planes + (n * (BITS * row_bytes))[:, None]
    sums = no_sums(BLOCK_M, BLOCK_N, BLOCK_K)
    for block in range(groups * tl.cdiv(group_size, BLOCK_K)):
        group, first, stop = group_block(block, group_size, WHOLE, BLOCK_K)
        weight = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        for plane in tl.static_range(BITS):
            places = starts + plane * row_bytes
            bit = block_codes(places, first, (stop + 7) // 8 * 8, live, 1, True, WHOLE, BLOCK_K)
            step = tl.load(scale + (n * groups + group) * BITS + plane, mask=live, other=0.0)
            weight += (bit * 2 - 1).to(tl.float32) * step.to(tl.float32)[:, None]
        if offset is not None:
            shift = tl.load(offset + n * groups + group, mask=live, other=0.0)
            weight += shift.to(tl.float32)[:, None]
        column = first + tl.arange(0, BLOCK_K)
        sums = add_product(sums, weight, inputs, column, column < stop, rows, columns, BLOCK_M)
    write_sums(sums, outputs, n, rows, features, BLOCK_M)


def _not_whole_bytes(
    inputs: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None
) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    groups = scale.shape[1]
    if groups > 1 and inputs.shape[1] // groups % BYTE:
        return f"takes groups of whole bytes, got {inputs.shape[1] // groups} inputs"
    if not (inputs.is_contiguous() and planes.is_contiguous() and scale.is_contiguous()):
        return "takes contiguous tensors"
    return None if inputs.numel() and planes.numel() else "takes at least one row"


@triton_backend(lut_gemm, rule="contiguous tensors", check=_not_whole_bytes)
def _triton(inputs: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Look sums of signs up for one row, decode signs on the way for more."""
    (rows, columns), (features, bits, row_bytes) = inputs.shape, planes.shape
    groups = scale.shape[1]
    sizes = {"rows": rows, "features": features, "columns": columns}
    if rows == 1 and has_whole_groups(columns, columns // groups):
        options = options_of("lut_gemm_table", inputs.device, **sizes)
        width = options["BLOCK_K"] = min(options["BLOCK_K"], power_of_two(columns))
        split = cdiv(columns, width)
        outputs = partial_outputs(inputs, features, split)
        launch(
            _table_kernel,
            (cdiv(features, options["BLOCK_N"] * options["SHARE"]), split),
            *(inputs, planes, scale, offset, outputs),
            *(columns, features, columns // groups, row_bytes),
            **{"BITS": bits, "GROUP": min(width, power_of_two(columns // groups))},
            **options,
        )
        return outputs.sum(dim=0).to(inputs.dtype) if split > 1 else outputs[0]
    options = options_of("lut_gemm", inputs.device, **sizes)
    options["BLOCK_M"] = block_rows(rows, options["BLOCK_M"])
    options |= block_columns(columns // groups, options["BLOCK_K"])
    outputs = inputs.new_empty((rows, features))
    launch(
        _kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"])),
        *(inputs, planes, scale, offset, outputs, rows, columns, features, groups, row_bytes),
        **{"BITS": bits},
        **options,
    )
    return outputs
