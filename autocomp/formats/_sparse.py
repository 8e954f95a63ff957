"""What sparse formats share: the kept values of a mask, floating or on a grid, row-major."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, torch_dtype
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.uniform import Grid
from autocomp.kernels._masked import masked_codes, masked_weight
from autocomp.kernels.bits import pack_bits, packed_bytes


def value_tensors(
    shape: tuple[int, int], kept: int, dtype: str, grid: Grid | None
) -> dict[str, TensorInfo]:
    """Return ``values`` (kept,) in ``dtype``, or packed codes (bytes,) with the grid's tensors."""
    if grid is None:
        return {"values": TensorInfo((kept,), dtype)}
    return {
        "values": TensorInfo((packed_bytes(kept, grid.bits),), "uint8"),
        **grid.tensors(shape),
    }


def pack_values(
    mask: Tensor, dense: Tensor, dtype: str, grid: Grid | None, sides: tuple[Tensor | None, ...]
) -> dict[str, Tensor]:
    """Store the kept entries of ``dense``: values, or codes when there is a grid.

    Args:
        mask: (out, in) bool, True is kept.
        dense: (out, in) values, or integer codes.
        dtype: Dtype of values without a grid.
        grid: The grid of the codes, or ``None``.
        sides: (scale, zero), each (out, groups) or ``None``.

    Raises:
        PlanError: If there is a grid but no scale.
    """
    kept = dense.detach()[mask]
    if grid is None:
        return {"values": kept.to(torch_dtype(dtype))}
    scale, zero = sides
    if scale is None:
        raise PlanError("codes on a grid need a scale.")
    return {"values": pack_bits(kept[None], grid.bits)[0], **grid.pack(scale, zero)}


def value_operands(
    tensors: Mapping[str, Tensor], grid: Grid | None
) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """Return values, scale, zero points and bits, as kernels take them."""
    if grid is None:
        return tensors["values"], None, None, 0
    return tensors["values"], tensors["scale"], tensors.get("zero"), grid.bits


def decode_values(mask: Tensor, tensors: Mapping[str, Tensor], grid: Grid | None) -> Tensor:
    """Return the weight (out, in) fp32 of a mask (out, in) bool; removed weights are 0."""
    return masked_weight(mask, *value_operands(tensors, grid))


def sparse_leaf(
    weight: Tensor,
    mask: Tensor,
    tensors: Mapping[str, Tensor],
    grid: Grid,
    pack: Callable[..., CompressedWeight],
) -> GridLeaf:
    """Return the kept weights as a matrix on the grid; ``pack`` is that of the format."""
    codes = masked_codes(mask, tensors["values"], grid.bits)
    scale, zero = grid.sides(tensors)
    regrid = partial(pack, mask)
    return GridLeaf(weight, grid.bits, grid.symmetric, codes, scale, zero, regrid, keep=mask)


def project_values(
    weight: Tensor, mask: Tensor, tensors: Mapping[str, Tensor], dtype: str, grid: Grid | None
) -> Tensor:
    """Return what a fixed mask stores for a trained weight (out, in), without gradient."""
    if grid is None:
        values = weight.detach().to(torch_dtype(dtype)).to(torch.float32)
    else:
        values = grid.project(weight, tensors)
    return values.masked_fill(~mask, 0.0)


def store_values(
    weight: Tensor, mask: Tensor, tensors: Mapping[str, Tensor], dtype: str, grid: Grid | None
) -> dict[str, Tensor]:
    """Return the stored tensors with the kept entries of a trained weight (out, in) in place."""
    if grid is None:
        values = weight.detach()[mask].to(torch_dtype(dtype))
    else:
        values = pack_bits(grid.codes(weight, tensors)[mask][None], grid.bits)[0]
    return {**tensors, "values": values}
