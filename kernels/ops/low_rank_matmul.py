"""Product with two factors, one after the other, each dense or packed on a uniform grid."""

from typing import NamedTuple

import torch
from torch import Tensor

from autocomp.kernels._decode import block_codes, gather_codes, whole_bytes
from autocomp.kernels._op import operation
from autocomp.kernels._tile import LEAST_ROWS
from autocomp.kernels._triton import cdiv, jit, launch, options_of, tl, triton_backend
from autocomp.kernels.dense_matmul import dense_matmul
from autocomp.kernels.weight_only_matmul import weight_only_matmul


class Packed(NamedTuple):
    """A factor (out, in) on a uniform grid: ``scale · (code − zero)``.

    Args:
        codes: (out, ceil(in·bits/8)) uint8.
        scale: (out, groups) fp16.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code, 1 to 8.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int


@operation
def low_rank_matmul(inputs: Tensor, left: Tensor | Packed, right: Tensor | Packed) -> Tensor:
    """Multiply by a low-rank weight: ``y = (x Rᵀ) Lᵀ``; packed factors stay packed.

    Args:
        inputs: (rows, in) of a floating dtype.
        left: L (out, rank) of a floating dtype, or packed.
        right: R (rank, in) of a floating dtype, or packed.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    return _multiply(_multiply(inputs, right), left)


@low_rank_matmul.operator
def _shape(inputs: Tensor, left: Tensor | Packed, right: Tensor | Packed) -> Tensor:
    features = left.codes.shape[0] if isinstance(left, Packed) else left.shape[0]
    return inputs.new_empty((inputs.shape[0], features))


def _multiply(inputs: Tensor, factor: Tensor | Packed) -> Tensor:
    """Multiply inputs (rows, in) by one factor (out, in)."""
    if isinstance(factor, Packed):
        return weight_only_matmul(inputs, *factor)
    return dense_matmul(inputs, factor)


@jit
def _factor(  # noqa: PLR0913
    values: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    n: tl.tensor,
    first: tl.tensor,
    live: tl.tensor,
    columns: int,
    row_bytes: int,
    groups: int,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """Return a tile (n, BLOCK_K) of a factor with so many columns, fp32; 0 bits are values."""
    k = first + tl.arange(0, BLOCK_K)
    keep = live[:, None] & (k < columns)[None, :]
    if BITS == 0:
        found = tl.load(values + n[:, None] * columns + k[None, :], mask=keep, other=0.0)
        found = found.to(tl.float32)
    else:
        starts = values + (n * row_bytes)[:, None]
        code = block_codes(starts, first, columns, live, BITS, BYTES, False, BLOCK_K)
        found = code.to(tl.float32)
        group = (k // (columns // groups))[None, :]
        if zero is None:
            found -= 1 << (BITS - 1)
        else:
            zeros = zero + (n * ((groups * BITS + 7) // 8))[:, None]
            found -= gather_codes(zeros, group, keep, BITS).to(tl.float32)
        step = tl.load(scale + n[:, None] * groups + group, mask=keep, other=0.0)
        found *= step.to(tl.float32)
    return found


@jit
def _kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    left: tl.tensor,
    left_scale: tl.tensor,
    left_zero: tl.tensor,
    right: tl.tensor,
    right_scale: tl.tensor,
    right_zero: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    rank: int,
    left_bytes: int,
    right_bytes: int,
    left_groups: int,
    right_groups: int,
    LEFT_BITS: tl.constexpr,
    RIGHT_BITS: tl.constexpr,
    LEFT_BYTES: tl.constexpr,
    RIGHT_BYTES: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A block of the inner dimension through both factors, for a share of the outputs.

    What is between the factors never leaves the program; the shares of the outputs find it again
    rather than wait for one another.
    """
    share, split = tl.program_id(0), tl.program_id(1)
    m = tl.arange(0, BLOCK_M)
    taken = m < rows
    inner = (share * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    within = inner < rank
    middle = tl.zeros((BLOCK_R, BLOCK_M), dtype=tl.float32)
    for block in range(tl.cdiv(columns, BLOCK_K)):
        first = block * BLOCK_K
        column = first + tl.arange(0, BLOCK_K)
        inside = column < columns
        places = inputs + m[None, :] * columns + column[:, None]
        values = tl.load(places, mask=inside[:, None] & taken[None, :], other=0.0)
        tile = _factor(
            right,
            right_scale,
            right_zero,
            inner,
            first,
            within,
            columns,
            right_bytes,
            right_groups,
            RIGHT_BITS,
            RIGHT_BYTES,
            BLOCK_K,
        )
        middle += tl.dot(tile.to(values.dtype), values, input_precision="ieee")
    between = middle.to(inputs.dtype.element_ty)
    part = tl.cdiv(tl.cdiv(features, BLOCK_N), SPLIT)
    for block in range(part * split, tl.minimum(part * (split + 1), tl.cdiv(features, BLOCK_N))):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        live = n < features
        tile = _factor(
            left,
            left_scale,
            left_zero,
            n,
            share * BLOCK_R,
            live,
            rank,
            left_bytes,
            left_groups,
            LEFT_BITS,
            LEFT_BYTES,
            BLOCK_R,
        )
        found = tl.dot(tile.to(between.dtype), between, input_precision="ieee")
        places = outputs + (share * rows + m[None, :]) * features + n[:, None]
        kept = live[:, None] & taken[None, :]
        tl.store(places, found.to(outputs.dtype.element_ty), mask=kept)


def _not_few_rows(inputs: Tensor, left: Tensor | Packed, right: Tensor | Packed) -> str | None:
    """Return why the kernel of both factors does not take these arguments."""
    if inputs.shape[0] > LEAST_ROWS:
        return f"takes at most {LEAST_ROWS} rows; more are worth a launch a factor"
    tensors = [t for factor in (left, right) for t in _parts(factor)[:3] if t is not None]
    if not all(tensor.is_contiguous() for tensor in (inputs, *tensors)):
        return "takes contiguous tensors"
    return None if all(tensor.numel() for tensor in (inputs, *tensors)) else "takes no empty ones"


def _parts(factor: Tensor | Packed) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """Return values or codes, scale, zero points and bits of a factor; 0 bits of a dense one."""
    return factor if isinstance(factor, Packed) else (factor, None, None, 0)


@triton_backend(low_rank_matmul, rule=f"at most {LEAST_ROWS} rows", check=_not_few_rows)
def _triton(inputs: Tensor, left: Tensor | Packed, right: Tensor | Packed) -> Tensor:
    """Both factors in one launch."""
    (rows, columns) = inputs.shape
    outer, inner = _parts(left), _parts(right)
    features, rank = outer[0].shape[0], inner[0].shape[0]
    sizes = {"rows": rows, "features": features, "columns": columns}
    options = options_of("low_rank", inputs.device, **sizes)
    shares = cdiv(rank, options["BLOCK_R"])
    dtype = inputs.dtype if shares == 1 else torch.float32
    outputs = inputs.new_empty((shares, rows, features), dtype=dtype)
    groups = [1 if scale is None else scale.shape[1] for scale in (outer[1], inner[1])]
    launch(
        _kernel,
        (shares, options["SPLIT"]),
        *(inputs, *outer[:3], *inner[:3], outputs, rows, columns, features, rank),
        *(outer[0].shape[1], inner[0].shape[1], *groups),
        **{"LEFT_BITS": outer[3], "RIGHT_BITS": inner[3], "BLOCK_M": LEAST_ROWS},
        **{"LEFT_BYTES": whole_bytes(rank, outer[3])},
        **{"RIGHT_BYTES": whole_bytes(columns, inner[3])},
        **options,
    )
    return outputs.sum(dim=0).to(inputs.dtype) if shares > 1 else outputs[0]
