"""Product with an N:M sparse weight: positions within each pattern, and the kept values.

On a GPU the kept values of a row, which number the same in every row, gather the inputs that they
multiply; for more rows of inputs a tile of the weight is put together and multiplied dense.

Reference: Xia et al. 2023, Flash-LLM, https://arxiv.org/abs/2309.10285
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from autocomp.kernels._decode import block_codes, gather_codes, whole_bytes
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
    write_sums,
)
from autocomp.kernels._triton import cdiv, jit, launch, options_of, tl, triton_backend
from autocomp.kernels.bits import unpack_bits
from autocomp.kernels.dense_matmul import by_blocks, dense_matmul


def nm_mask(index: Tensor, keep: int, m: int, columns: int) -> Tensor:
    """Return the mask (out, columns) bool of packed positions; True is kept.

    Args:
        index: (out, bytes) uint8: ``columns / m · keep`` packed positions a row.
        keep: Weights kept of every ``m``.
        m: Pattern length.
        columns: Inputs of the weight.
    """
    positions = unpack_bits(index, (m - 1).bit_length(), columns // m * keep)
    patterns = positions.view(-1, keep).to(torch.int64)
    mask = torch.zeros((patterns.shape[0], m), dtype=torch.bool, device=index.device)
    return mask.scatter_(1, patterns, True).view(index.shape[0], columns)


@operation
def nm_matmul(
    inputs: Tensor,
    index: Tensor,
    pattern: Sequence[int],
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> Tensor:
    """Multiply by the kept weights of an N:M pattern: decoded, then a dense product.

    Args:
        inputs: (rows, in) of a floating dtype.
        index: (out, bytes) uint8, packed ascending positions.
        pattern: Weights kept, of how many: two numbers.
        values: The kept weights in row-major order: (kept,) floating, or (bytes,) packed codes.
        scale: (out, groups) fp16; ``None`` where the values are floating.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code; not read where the values are floating.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    keep = nm_mask(index, *pattern, inputs.shape[1])
    return dense_matmul.reference(inputs, masked_weight(keep, values, scale, zero, bits))


@nm_matmul.operator
def _shape(
    inputs: Tensor,
    index: Tensor,
    pattern: Sequence[int],
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> Tensor:
    return inputs.new_empty((inputs.shape[0], index.shape[0]))


@nm_matmul.backend("blocks", priority=1)
def _blocks(
    inputs: Tensor,
    index: Tensor,
    pattern: Sequence[int],
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> Tensor:
    """Decode a block of rows of the weight, multiply by it, forget it."""
    columns = inputs.shape[1]
    kept = columns // pattern[1] * pattern[0]

    def multiply(part: slice) -> Tensor:
        keep = nm_mask(index[part], *pattern, columns)
        weight = masked_rows(keep, part.start * kept, part, (values, scale, zero, bits))
        return dense_matmul(inputs, weight)

    return by_blocks(inputs, index.shape[0], multiply)


@jit
def _kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    index: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    groups: int,
    kept: int,
    index_bytes: int,
    KEEP: tl.constexpr,
    M: tl.constexpr,
    PLACE_BITS: tl.constexpr,
    PLACE_BYTES: tl.constexpr,
    BITS: tl.constexpr,
    VALUE_BYTES: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One row of inputs: a block of kept values. More: of inputs. It lies in one group."""
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    live = n < features
    kept_codes = values + (n * (kept * BITS // 8))[:, None]
    positions = index + (n * index_bytes)[:, None]
    width = kept // groups if BLOCK_M == 1 else columns // groups
    sums = no_sums(BLOCK_M, BLOCK_N, BLOCK_K)
    for block in range(groups * tl.cdiv(width, BLOCK_K)):
        group, first, stop = group_block(block, width, WHOLE, BLOCK_K)
        rank = first + tl.arange(0, BLOCK_K)
        keep = live[:, None] if WHOLE else live[:, None] & (rank < stop)[None, :]
        if BLOCK_M == 1:
            place = block_codes(
                positions, first, stop, live, PLACE_BITS, PLACE_BYTES, WHOLE, BLOCK_K
            )
            if VALUE_BYTES:
                code = block_codes(kept_codes, first, stop, live, BITS, True, WHOLE, BLOCK_K)
                value = code.to(tl.float32)
            else:
                value = kept_values(values, n * kept, rank[None, :], keep, BITS)
            weight = on_grid(value, scale, zero, n, group, groups, live, BITS)
            places = inputs + (rank // KEEP * M)[None, :] + place
            sums += weight * tl.load(places, mask=keep, other=0.0).to(tl.float32)
        else:
            held = tl.full((BLOCK_N, BLOCK_K), -1, dtype=tl.int32)
            for one in range(KEEP):
                here = (rank // M * KEEP + one)[None, :]
                place = gather_codes(positions, here, keep, PLACE_BITS)
                held = tl.where(keep & (place == (rank % M)[None, :]), here, held)
            value = kept_values(values, n * kept, held, held >= 0, BITS)
            weight = on_grid(value, scale, zero, n, group, groups, live, BITS)
            weight = tl.where(held >= 0, weight, 0.0)
            sums = add_product(sums, weight, inputs, rank, rank < stop, rows, columns, BLOCK_M)
    write_sums(sums, outputs, n, rows, features, BLOCK_M)


def _not_whole_patterns(
    inputs: Tensor,
    index: Tensor,
    pattern: Sequence[int],
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    groups = 1 if scale is None else scale.shape[1]
    if inputs.shape[1] // groups % pattern[1]:
        return f"takes groups of whole patterns, got {inputs.shape[1] // groups} inputs"
    if not (inputs.is_contiguous() and index.is_contiguous()):
        return "takes contiguous tensors"
    return None if inputs.numel() and index.numel() else "takes at least one row"


@triton_backend(nm_matmul, rule="groups of whole patterns", check=_not_whole_patterns)
def _triton(
    inputs: Tensor,
    index: Tensor,
    pattern: Sequence[int],
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> Tensor:
    """Gather inputs for one row, load sparse and multiply dense for more."""
    (rows, columns), (features, index_bytes) = inputs.shape, index.shape
    (keep, m), groups = pattern, 1 if scale is None else scale.shape[1]
    kept, place_bits = columns // m * keep, (m - 1).bit_length()
    held_bits = 0 if scale is None else bits
    width = (kept if rows == 1 else columns) // groups
    sizes = {"rows": rows, "features": features, "columns": columns, "group": width}
    options = options_of("nm", inputs.device, **sizes)
    options["BLOCK_M"] = block_rows(rows, options["BLOCK_M"])
    options |= block_columns(width, options["BLOCK_K"])
    outputs = inputs.new_empty((rows, features))
    launch(
        _kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"])),
        *(inputs, index, values, scale, zero, outputs),
        *(rows, columns, features, groups, kept, index_bytes),
        **{"KEEP": keep, "M": m, "PLACE_BITS": place_bits, "BITS": held_bits},
        **{"PLACE_BYTES": whole_bytes(width, place_bits)},
        **{"VALUE_BYTES": whole_bytes(width, held_bits)},
        **options,
    )
    return outputs
