"""Product with an N:M sparse weight: positions within each pattern, and the kept values.

On a GPU the kept values of a row, which number the same in every row, gather the inputs that they
multiply; for more rows of inputs a tile of the weight is put together and multiplied dense.

Reference: Xia et al. 2023, Flash-LLM, https://arxiv.org/abs/2309.10285
"""

import torch
from torch import Tensor

from autocomp.kernels._decode import gather_codes
from autocomp.kernels._masked import masked_rows, masked_weight
from autocomp.kernels._op import operation
from autocomp.kernels._tile import (
    add_product,
    block_rows,
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
    pattern: tuple[int, int],
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> Tensor:
    """Multiply by the kept weights of an N:M pattern: decoded, then a dense product.

    Args:
        inputs: (rows, in) of a floating dtype.
        index: (out, bytes) uint8, packed ascending positions.
        pattern: Weights kept, of how many.
        values: The kept weights in row-major order: (kept,) floating, or (bytes,) packed codes.
        scale: (out, groups) fp16; ``None`` where the values are floating.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code; not read where the values are floating.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    keep = nm_mask(index, *pattern, inputs.shape[1])
    return dense_matmul.reference(inputs, masked_weight(keep, values, scale, zero, bits))


@nm_matmul.backend("blocks", priority=1)
def _blocks(
    inputs: Tensor,
    index: Tensor,
    pattern: tuple[int, int],
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
    index_bytes: int,
    KEEP: tl.constexpr,
    M: tl.constexpr,
    PLACE_BITS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One row of inputs: a block of kept values. More: of inputs. It lies in one group."""
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    live = n < features
    start = n * (columns // M * KEEP)
    positions = index + (n * index_bytes)[:, None]
    group_size = columns // groups
    width = group_size
    if BLOCK_M == 1:
        width = group_size // M * KEEP
    blocks = tl.cdiv(width, BLOCK_K)
    sums = no_sums(BLOCK_M, BLOCK_N, BLOCK_K)
    for block in range(groups * blocks):
        group = block // blocks
        offset = block % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = offset < width
        keep = live[:, None] & inside[None, :]
        rank = group * width + offset
        if BLOCK_M == 1:
            place = gather_codes(positions, rank[None, :], keep, PLACE_BITS)
            value = kept_values(values, start, rank[None, :], keep, BITS)
            weight = on_grid(value, scale, zero, n, group, groups, live, BITS)
            places = inputs + (rank // KEEP * M)[None, :] + place
            sums += weight * tl.load(places, mask=keep, other=0.0).to(tl.float32)
        else:
            held = tl.full((BLOCK_N, BLOCK_K), -1, dtype=tl.int32)
            for one in range(KEEP):
                kept = (rank // M * KEEP + one)[None, :]
                place = gather_codes(positions, kept, keep, PLACE_BITS)
                held = tl.where(keep & (place == (rank % M)[None, :]), kept, held)
            value = kept_values(values, start, held, held >= 0, BITS)
            weight = on_grid(value, scale, zero, n, group, groups, live, BITS)
            weight = tl.where(held >= 0, weight, 0.0)
            sums = add_product(sums, weight, inputs, rank, inside, rows, columns, BLOCK_M)
    write_sums(sums, outputs, n, rows, features, BLOCK_M)


def _not_whole_patterns(
    inputs: Tensor,
    index: Tensor,
    pattern: tuple[int, int],
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
    pattern: tuple[int, int],
    values: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
) -> Tensor:
    """Gather inputs for one row, load sparse and multiply dense for more."""
    (rows, columns), (features, index_bytes) = inputs.shape, index.shape
    groups = 1 if scale is None else scale.shape[1]
    sizes = {"rows": rows, "features": features, "columns": columns}
    options = options_of("nm", inputs.device, **sizes)
    options["BLOCK_M"] = block_rows(rows, options["BLOCK_M"])
    outputs = inputs.new_empty((rows, features))
    launch(
        _kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"])),
        *(inputs, index, values, scale, zero, outputs),
        *(rows, columns, features, groups, index_bytes),
        **{"KEEP": pattern[0], "M": pattern[1], "PLACE_BITS": (pattern[1] - 1).bit_length()},
        **{"BITS": 0 if scale is None else bits},
        **options,
    )
    return outputs
