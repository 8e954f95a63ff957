"""A matrix of scaled signs times a vector, by table look-ups instead of multiplications.

Inputs are taken eight at a time. All 256 signed sums of eight inputs make a table, so a byte of a
sign plane is one look-up; the sums of a plane over a group are multiplied by its scale, once.

On a GPU the bits of a tile become a tile of the weight, as memory and not arithmetic limits it.

Reference: Park et al. 2022, LUT-GEMM, https://arxiv.org/abs/2206.09557
"""

import torch
from torch import Tensor

from autocomp.kernels._op import operation
from autocomp.kernels._tile import add_product, block_rows, byte_bits, no_sums, write_sums
from autocomp.kernels._triton import cdiv, jit, launch, options_of, tl, triton_backend

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


def _tables(parts: Tensor) -> Tensor:
    """Return all signed sums of eight inputs, (n, bytes, 256), of inputs (n, bytes, 8).

    Each input doubles the table: the entries so far, and the same with its sign turned to +.
    """
    table = -parts.sum(dim=2, keepdim=True)
    for bit in range(BYTE):
        table = torch.cat([table, table + 2 * parts[:, :, bit, None]], dim=2)
    return table


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
    BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Planes of signs add up to a tile of the weight, which lies in one group."""
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    live = n < features
    row_bytes = (columns + 7) // 8
    group_size = columns // groups
    blocks = tl.cdiv(group_size, BLOCK_K)
    sums = no_sums(BLOCK_M, BLOCK_N, BLOCK_K)
    for block in range(groups * blocks):
        group = block // blocks
        first = block % blocks * BLOCK_K
        inside = first + tl.arange(0, BLOCK_K) < group_size
        byte = first // 8 + tl.arange(0, BLOCK_K // 8)
        there = live[:, None] & (byte < (group_size + 7) // 8)[None, :]
        places = planes + (n * (BITS * row_bytes))[:, None]
        places += (group * group_size // 8 + byte)[None, :]
        weight = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        for plane in tl.static_range(BITS):
            bit = byte_bits(tl.load(places + plane * row_bytes, mask=there, other=0))
            step = tl.load(scale + (n * groups + group) * BITS + plane, mask=live, other=0.0)
            weight += (bit * 2 - 1).to(tl.float32) * step.to(tl.float32)[:, None]
        if offset is not None:
            shift = tl.load(offset + n * groups + group, mask=live, other=0.0)
            weight += shift.to(tl.float32)[:, None]
        column = group * group_size + first + tl.arange(0, BLOCK_K)
        sums = add_product(sums, weight, inputs, column, inside, rows, columns, BLOCK_M)
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
    """Decode signs on the way."""
    (rows, columns), (features, bits, _) = inputs.shape, planes.shape
    sizes = {"rows": rows, "features": features, "columns": columns}
    options = options_of("lut_gemm", inputs.device, **sizes)
    options["BLOCK_M"] = block_rows(rows, options["BLOCK_M"])
    outputs = inputs.new_empty((rows, features))
    launch(
        _kernel,
        (cdiv(rows, options["BLOCK_M"]), cdiv(features, options["BLOCK_N"])),
        *(inputs, planes, scale, offset, outputs, rows, columns, features, scale.shape[1]),
        **{"BITS": bits},
        **options,
    )
    return outputs
