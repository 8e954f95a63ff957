"""A matrix of scaled signs times a vector, by table look-ups instead of multiplications.

Inputs are taken eight at a time. All 256 signed sums of eight inputs make a table, so a byte of a
sign plane is one look-up; the sums of a plane over a group are multiplied by its scale, once.

Reference: Park et al. 2022, LUT-GEMM, https://arxiv.org/abs/2206.09557
"""

import torch
from torch import Tensor

from autocomp.kernels._op import operation

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
