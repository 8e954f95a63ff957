"""Product with a weight whose packed codes point at values: of each row, or of all rows."""

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
    write_sums,
)
from autocomp.kernels._triton import cdiv, jit, launch, options_of, tl, triton_backend
from autocomp.kernels.bits import unpack_bits
from autocomp.kernels.dense_matmul import by_blocks, dense_matmul


def codebook_weight(
    codes: Tensor, levels: Tensor, scale: Tensor | None, bits: int, columns: int
) -> Tensor:
    """Return ``scale · level[code]``, (out, columns) fp32; the arguments are the operation's."""
    rows = len(codes)
    index = unpack_bits(codes, bits, columns).to(torch.int64)
    dense = levels.to(torch.float32).expand(rows, -1).gather(1, index)
    if scale is None:
        return dense
    return (dense.view(rows, scale.shape[1], -1) * scale[..., None]).view(rows, columns)


@operation
def codebook_matmul(
    inputs: Tensor, codes: Tensor, levels: Tensor, scale: Tensor | None, bits: int
) -> Tensor:
    """Multiply by values that codes point at: ``y = x Ŵᵀ``, ``Ŵ = scale · level[code]``.

    Args:
        inputs: (rows, in) of a floating dtype.
        codes: (out, ceil(in·bits/8)) uint8.
        levels: (out, 2^bits) of a floating dtype, or (1, 2^bits) that all rows share.
        scale: (out, groups) fp32, ``in / groups`` consecutive inputs a group; ``None`` is 1.
        bits: Bits a code, 1 to 8.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    weight = codebook_weight(codes, levels, scale, bits, inputs.shape[1])
    return dense_matmul.reference(inputs, weight)


@codebook_matmul.operator
def _shape(
    inputs: Tensor, codes: Tensor, levels: Tensor, scale: Tensor | None, bits: int
) -> Tensor:
    return inputs.new_empty((inputs.shape[0], codes.shape[0]))


@codebook_matmul.backend("blocks", priority=1)
def _blocks(
    inputs: Tensor, codes: Tensor, levels: Tensor, scale: Tensor | None, bits: int
) -> Tensor:
    """Decode a block of rows of the weight, multiply by it, forget it."""

    def multiply(part: slice) -> Tensor:
        own = levels if len(levels) == 1 else levels[part]
        sizes = None if scale is None else scale[part]
        return dense_matmul(
            inputs, codebook_weight(codes[part], own, sizes, bits, inputs.shape[1])
        )

    return by_blocks(inputs, codes.shape[0], multiply)


@jit
def _kernel(  # noqa: PLR0913
    inputs: tl.tensor,
    codes: tl.tensor,
    levels: tl.tensor,
    scale: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    columns: int,
    features: int,
    groups: int,
    row_bytes: int,
    level_step: int,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Levels stay near the processor: a row has at most 256, and reads them again and again."""
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    live = n < features
    starts = codes + (n * row_bytes)[:, None]
    own = levels + (n * level_step)[:, None]
    group_size = columns // groups
    sums = no_sums(BLOCK_M, BLOCK_N, BLOCK_K)
    for block in range(groups * tl.cdiv(group_size, BLOCK_K)):
        group, first, stop = group_block(block, group_size, WHOLE, BLOCK_K)
        code = block_codes(starts, first, stop, live, BITS, BYTES, WHOLE, BLOCK_K)
        weight = tl.load(own + code, mask=live[:, None], other=0.0).to(tl.float32)
        if scale is not None:
            weight *= tl.load(scale + n * groups + group, mask=live, other=0.0)[:, None]
        column = first + tl.arange(0, BLOCK_K)
        sums = add_product(sums, weight, inputs, column, column < stop, rows, columns, BLOCK_M)
    write_sums(sums, outputs, n, rows, features, BLOCK_M)


def _not_contiguous(
    inputs: Tensor, codes: Tensor, levels: Tensor, scale: Tensor | None, bits: int
) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    if not (inputs.is_contiguous() and codes.is_contiguous() and levels.is_contiguous()):
        return "takes contiguous tensors"
    return None if inputs.numel() and codes.numel() else "takes at least one row"


@triton_backend(codebook_matmul, rule="contiguous tensors", check=_not_contiguous)
def _triton(
    inputs: Tensor, codes: Tensor, levels: Tensor, scale: Tensor | None, bits: int
) -> Tensor:
    """Look levels up on the way."""
    (rows, columns), features = inputs.shape, codes.shape[0]
    groups = 1 if scale is None else scale.shape[1]
    group_size = columns // groups
    sizes = {"rows": rows, "features": features, "columns": columns, "group": group_size}
    sizes["bytes"] = inputs.element_size()
    options = options_of("codebook", inputs.device, **sizes)
    options["BLOCK_M"] = block_rows(rows, options["BLOCK_M"])
    options |= block_columns(group_size, options["BLOCK_K"])
    outputs = inputs.new_empty((rows, features))
    launch(
        _kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"])),
        *(inputs, codes, levels, None if scale is None else scale.contiguous(), outputs),
        *(rows, columns, features, groups, codes.shape[1]),
        *(0 if len(levels) == 1 else levels.shape[1],),
        **{"BITS": bits, "BYTES": whole_bytes(group_size, bits)},
        **options,
    )
    return outputs
