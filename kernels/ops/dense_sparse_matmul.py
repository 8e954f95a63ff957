"""Product with a few values of a sparse matrix, alone or beside a weight on a uniform grid."""

import torch
from torch import Tensor

from autocomp.kernels._decode import block_codes, whole_bytes
from autocomp.kernels._op import operation
from autocomp.kernels._tile import (
    add_product,
    block_columns,
    block_rows,
    group_block,
    no_sums,
    on_grid,
    write_sums,
)
from autocomp.kernels._triton import cdiv, jit, launch, options_of, tl, triton_backend
from autocomp.kernels.dense_matmul import by_blocks, dense_matmul
from autocomp.kernels.dequantize import dequantize
from autocomp.kernels.low_rank_matmul import Packed
from autocomp.kernels.weight_only_matmul import weight_only_matmul

FEW_ROWS = 4
"""Rows of inputs up to which the values gather what they multiply."""


def sparse_rows(starts: Tensor) -> Tensor:
    """Return the row of each value, (count,) int64, of where rows begin (out + 1,)."""
    rows = torch.arange(len(starts) - 1, device=starts.device)
    return rows.repeat_interleave(starts.diff().to(torch.int64))


def _weight(
    base: Packed | None, values: Tensor, columns: Tensor, starts: Tensor, width: int
) -> Tensor:
    """Return both parts of a weight with so many inputs added, (out, width) fp32."""
    if base is None:
        dense = torch.zeros((len(starts) - 1, width), device=values.device)
    else:
        dense = dequantize(*base, width)
    places = (sparse_rows(starts), columns.to(torch.int64))
    return dense.index_put_(places, values.to(torch.float32), accumulate=True)


@operation
def dense_sparse_matmul(
    inputs: Tensor, base: Packed | None, values: Tensor, columns: Tensor, starts: Tensor
) -> Tensor:
    """Multiply by the sum of a packed and a sparse weight: ``y = x (Ŵ + S)ᵀ``.

    Args:
        inputs: (rows, in) of a floating dtype.
        base: Ŵ (out, in) on a uniform grid; ``None`` is zero.
        values: (count,) of a floating dtype, row by row: S in compressed sparse rows.
        columns: (count,) integers, the input of each value.
        starts: (out + 1,) integers, where each row begins among the values.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    weight = _weight(base, values, columns, starts, inputs.shape[1])
    return dense_matmul.reference(inputs, weight)


@dense_sparse_matmul.operator
def _shape(
    inputs: Tensor, base: Packed | None, values: Tensor, columns: Tensor, starts: Tensor
) -> Tensor:
    return inputs.new_empty((inputs.shape[0], starts.shape[0] - 1))


@dense_sparse_matmul.backend("blocks", priority=1)
def _blocks(
    inputs: Tensor, base: Packed | None, values: Tensor, columns: Tensor, starts: Tensor
) -> Tensor:
    """Decode a block of rows of the weight, multiply by it, forget it."""

    def multiply(part: slice) -> Tensor:
        begins = starts[part.start : part.stop + 1]
        inside = slice(int(begins[0]), int(begins[-1]))
        rows = None
        if base is not None:
            zero = None if base.zero is None else base.zero[part]
            rows = Packed(base.codes[part], base.scale[part], zero, base.bits)
        weight = _weight(
            rows, values[inside], columns[inside], begins - begins[0], inputs.shape[1]
        )
        return dense_matmul(inputs, weight)

    return by_blocks(inputs, len(starts) - 1, multiply)


def _many_rows(
    inputs: Tensor, base: Packed | None, values: Tensor, columns: Tensor, starts: Tensor
) -> str | None:
    """Return why gathering inputs does not pay."""
    return None if inputs.shape[0] <= FEW_ROWS else f"takes at most {FEW_ROWS} rows"


@dense_sparse_matmul.backend(
    "gather", priority=10, rule=f"at most {FEW_ROWS} rows", check=_many_rows
)
def _gather(
    inputs: Tensor, base: Packed | None, values: Tensor, columns: Tensor, starts: Tensor
) -> Tensor:
    """Multiply each value by its input, add row by row; the packed part has its own kernels."""
    terms = inputs.T[columns.to(torch.int64)].to(torch.float32) * values.to(torch.float32)[:, None]
    sums = terms.new_zeros((len(starts) - 1, inputs.shape[0]))
    sums.index_add_(0, sparse_rows(starts), terms)
    if base is not None:
        sums += weight_only_matmul(inputs, *base).T
    return sums.T.to(inputs.dtype).contiguous()


@jit
def _kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    values: tl.tensor,
    places: tl.tensor,
    starts: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    groups: int,
    row_bytes: int,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """The packed part tile by tile, then the values of the same rows; both into the same sums."""
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    live = n < features
    sums = no_sums(BLOCK_M, BLOCK_N, BLOCK_K)
    if BITS > 0:
        rows_of_codes = codes + (n * row_bytes)[:, None]
        group_size = columns // groups
        for block in range(groups * tl.cdiv(group_size, BLOCK_K)):
            group, first, stop = group_block(block, group_size, WHOLE, BLOCK_K)
            code = block_codes(rows_of_codes, first, stop, live, BITS, BYTES, WHOLE, BLOCK_K)
            weight = on_grid(code.to(tl.float32), scale, zero, n, group, groups, live, BITS)
            column = first + tl.arange(0, BLOCK_K)
            inside = column < stop
            sums = add_product(sums, weight, inputs, column, inside, rows, columns, BLOCK_M)
    start = tl.load(starts + n, mask=live, other=0)
    count = tl.load(starts + n + 1, mask=live, other=0) - start
    longest = tl.max(count, axis=0)
    if BLOCK_M == 1:
        for first in range(0, longest, BLOCK_K):
            rank = first + tl.arange(0, BLOCK_K)
            there = rank[None, :] < count[:, None]
            here = start[:, None] + rank[None, :]
            column = tl.load(places + here, mask=there, other=0)
            value = tl.load(values + here, mask=there, other=0.0).to(tl.float32)
            sums += value * tl.load(inputs + column, mask=there, other=0.0).to(tl.float32)
    else:
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        vectors = inputs + m[None, :].to(tl.int64) * columns
        for rank in range(longest):
            there = rank < count
            column = tl.load(places + start + rank, mask=there, other=0)
            value = tl.load(values + start + rank, mask=there, other=0.0).to(tl.float32)
            taken = there[:, None] & (m < rows)[None, :]
            vector = tl.load(vectors + column[:, None], mask=taken, other=0.0).to(tl.float32)
            sums += value[:, None] * vector
    write_sums(sums, outputs, n, rows, features, BLOCK_M)


def _not_contiguous(
    inputs: Tensor, base: Packed | None, values: Tensor, columns: Tensor, starts: Tensor
) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    if not (inputs.is_contiguous() and values.is_contiguous() and columns.is_contiguous()):
        return "takes contiguous tensors"
    if base is not None and not (base.codes.is_contiguous() and base.scale.is_contiguous()):
        return "takes contiguous codes and scales"
    return None if inputs.numel() and len(starts) > 1 else "takes at least one row"


@triton_backend(dense_sparse_matmul, rule="contiguous tensors", check=_not_contiguous)
def _triton(
    inputs: Tensor, base: Packed | None, values: Tensor, columns: Tensor, starts: Tensor
) -> Tensor:
    """Both parts in one launch."""
    (rows, width), features = inputs.shape, len(starts) - 1
    codes, scale, zero, bits = base or (None, None, None, 0)
    groups, row_bytes = (1, 0) if base is None else (base.scale.shape[1], base.codes.shape[1])
    group_size = width // groups
    sizes = {"rows": rows, "features": features, "columns": width}
    options = options_of("dense_sparse", inputs.device, **sizes)
    options["BLOCK_M"] = block_rows(rows, options["BLOCK_M"])
    options |= block_columns(group_size, options["BLOCK_K"])
    outputs = inputs.new_empty((rows, features))
    launch(
        _kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"])),
        *(inputs, codes, scale, zero, values, columns, starts, outputs),
        *(rows, width, features, groups, row_bytes),
        **{"BITS": bits, "BYTES": whole_bytes(group_size, bits)},
        **options,
    )
    return outputs
