"""Product with a sparse weight of any pattern: one bit a weight, and the kept values.

On a GPU the weight is loaded sparse and multiplied dense: a tile of it is put together from the
mask and the kept values in registers, where removed weights cost nothing but their zeros.

Reference: Xia et al. 2023, Flash-LLM, https://arxiv.org/abs/2309.10285
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from autocomp.kernels._masked import masked_rows, masked_weight
from autocomp.kernels._op import operation
from autocomp.kernels._tile import (
    add_product,
    block_columns,
    block_rows,
    group_block,
    kept_values,
    no_sums,
    on_grid,
    spread,
    write_sums,
)
from autocomp.kernels._triton import cdiv, jit, launch, options_of, tl, triton_backend
from autocomp.kernels.bits import unpack_bits
from autocomp.kernels.dense_matmul import by_blocks, dense_matmul


def row_starts(mask: Tensor) -> Tensor:
    """Return how many weights are kept before each row, and in all, (out + 1,).

    int32, or int64 where a mask could keep more.

    Args:
        mask: (out, bytes) uint8, one bit a weight.
    """
    pairs = mask - ((mask >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    ones = (fours + (fours >> 4)) & 0x0F
    dtype = torch.int32 if 8 * mask.numel() < 1 << 31 else torch.int64
    return pad(ones.sum(dim=1).cumsum(dim=0), (1, 0)).to(dtype)


@operation
def bitmask_matmul(
    inputs: Tensor,
    mask: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
    starts: Tensor | None = None,
) -> Tensor:
    """Multiply by the kept weights of a mask: decoded, then a dense product.

    Args:
        inputs: (rows, in) of a floating dtype.
        mask: (out, ceil(in/8)) uint8, one bit a weight.
        values: The kept weights in row-major order: (kept,) floating, or (bytes,) packed codes.
        scale: (out, groups) fp16; ``None`` where the values are floating.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code; not read where the values are floating.
        starts: What :func:`row_starts` gives of the mask; ``None`` has it found at every call.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    keep = unpack_bits(mask, 1, inputs.shape[1]).view(torch.bool)
    weight = masked_weight(keep, values, scale, zero, bits)
    return dense_matmul.reference(inputs, weight)


@bitmask_matmul.operator
def _shape(
    inputs: Tensor,
    mask: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
    starts: Tensor | None = None,
) -> Tensor:
    return inputs.new_empty((inputs.shape[0], mask.shape[0]))


@bitmask_matmul.backend("blocks", priority=1)
def _blocks(
    inputs: Tensor,
    mask: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
    starts: Tensor | None = None,
) -> Tensor:
    """Decode a block of rows of the weight, multiply by it, forget it."""
    begins = row_starts(mask) if starts is None else starts

    def multiply(part: slice) -> Tensor:
        keep = unpack_bits(mask[part], 1, inputs.shape[1]).view(torch.bool)
        weight = masked_rows(keep, int(begins[part.start]), part, (values, scale, zero, bits))
        return dense_matmul(inputs, weight)

    return by_blocks(inputs, mask.shape[0], multiply)


@jit
def _ones(byte: tl.tensor) -> tl.tensor:
    """Return how many bits of a byte are set, int32."""
    pairs = byte - ((byte >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (fours + (fours >> 4)) & 0x0F


@jit
def _ranked(byte: tl.tensor, before: tl.tensor, PLACE: tl.constexpr) -> tl.tensor:
    """Return one bit of each byte, and twice how many are set before it."""
    rank = before + _ones(byte & ((1 << PLACE) - 1))
    return rank * 2 + ((byte >> PLACE) & 1)


@jit
def _kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    mask: tl.tensor,
    starts: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
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
    """Bits of the mask count up to where each value lies; a block lies in one group."""
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    live = n < features
    start = tl.load(starts + n, mask=live, other=0).to(tl.int64)
    rows_of_bits = mask + (n * row_bytes)[:, None]
    group_size = columns // groups
    before = tl.zeros((BLOCK_N,), dtype=tl.int32)
    sums = no_sums(BLOCK_M, BLOCK_N, BLOCK_K)
    for block in range(groups * tl.cdiv(group_size, BLOCK_K)):
        group, first, stop = group_block(block, group_size, WHOLE, BLOCK_K)
        byte = first // 8 + tl.arange(0, BLOCK_K // 8)
        there = live[:, None] & (byte < (stop + 7) // 8)[None, :]
        word = tl.load(rows_of_bits + byte[None, :], mask=there, other=0).to(tl.int32)
        count = _ones(word)
        here = before[:, None] + tl.cumsum(count, axis=1) - count
        before += tl.sum(count, axis=1)
        ranked = spread(
            _ranked(word, here, 0),
            _ranked(word, here, 1),
            _ranked(word, here, 2),
            _ranked(word, here, 3),
            _ranked(word, here, 4),
            _ranked(word, here, 5),
            _ranked(word, here, 6),
            _ranked(word, here, 7),
        )
        bit = ranked & 1
        value = kept_values(values, start, ranked >> 1, bit == 1, BITS)
        weight = on_grid(value, scale, zero, n, group, groups, live, BITS)
        weight *= bit.to(tl.float32)
        column = first + tl.arange(0, BLOCK_K)
        sums = add_product(sums, weight, inputs, column, column < stop, rows, columns, BLOCK_M)
    write_sums(sums, outputs, n, rows, features, BLOCK_M)


def _not_whole_bytes(
    inputs: Tensor,
    mask: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
    starts: Tensor | None = None,
) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    groups = 1 if scale is None else scale.shape[1]
    if groups > 1 and inputs.shape[1] // groups % 8:
        return f"takes groups of whole bytes of the mask, got {inputs.shape[1] // groups} inputs"
    if not (inputs.is_contiguous() and mask.is_contiguous()):
        return "takes contiguous tensors"
    return None if inputs.numel() and mask.numel() else "takes at least one row"


@triton_backend(bitmask_matmul, rule="groups of a multiple of 8", check=_not_whole_bytes)
def _triton(
    inputs: Tensor,
    mask: Tensor,
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
    starts: Tensor | None = None,
) -> Tensor:
    """Load sparse, multiply dense."""
    (rows, columns), features = inputs.shape, mask.shape[0]
    groups = 1 if scale is None else scale.shape[1]
    sizes = {"rows": rows, "features": features, "columns": columns}
    sizes["bytes"] = inputs.element_size()
    options = options_of("bitmask", inputs.device, **sizes)
    options["BLOCK_M"] = block_rows(rows, options["BLOCK_M"])
    options |= block_columns(columns // groups, options["BLOCK_K"])
    begins = row_starts(mask) if starts is None else starts
    outputs = inputs.new_empty((rows, features))
    launch(
        _kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"])),
        *(inputs, mask, begins, values, scale, zero, outputs),
        *(rows, columns, features, groups, mask.shape[1]),
        **{"BITS": 0 if scale is None else bits},
        **options,
    )
    return outputs
