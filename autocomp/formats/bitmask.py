"""Unstructured sparsity: one bit a weight says whether it is stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats._sparse import (
    decode_values,
    pack_values,
    project_values,
    sparse_leaf,
    store_values,
    value_operands,
    value_tensors,
)
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.straight_through import straight_through
from autocomp.formats.uniform import Grid
from autocomp.kernels.bitmask_matmul import bitmask_matmul, row_starts
from autocomp.kernels.bits import pack_bits, packed_bytes, unpack_bits

STARTS = "starts"
"""Name of the settled tensor."""


@dataclass(frozen=True, slots=True)
class Bitmask(Format):
    """``mask`` (out, ceil(in/8)) uint8 and the kept values, row-major.

    Args:
        kept: Number of weights kept; a count, not a threshold, so the size follows from it.
        dtype: Dtype of the values when there is no grid.
        grid: Grid of the kept values, or ``None`` to store them in ``dtype``.
    """

    name: ClassVar[str] = "bitmask"

    kept: int
    dtype: str
    grid: Grid | None = None

    def __post_init__(self) -> None:
        """Check shape, count and grid.

        Raises:
            PlanError: If the count exceeds the weights or the grid does not fit.
        """
        Format.__post_init__(self)
        if not 0 <= self.kept <= self.shape[0] * self.shape[1]:
            raise PlanError(
                f"a weight of shape {self.shape} keeps between 0 and "
                f"{self.shape[0] * self.shape[1]} weights, got {self.kept}."
            )
        if self.grid is not None:
            self.grid.check(self.shape)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``mask``, ``values`` and the tensors of the grid."""
        mask = TensorInfo((self.shape[0], packed_bytes(self.shape[1], 1)), "uint8")
        return {"mask": mask, **value_tensors(self.shape, self.kept, self.dtype, self.grid)}

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector: by the kept weights only."""
        return self.kept

    def pack(
        self, mask: Tensor, dense: Tensor, scale: Tensor | None = None, zero: Tensor | None = None
    ) -> CompressedWeight:
        """Store the weights that a mask keeps.

        Args:
            mask: (out, in) bool, True is kept.
            dense: (out, in): values, or integer codes when there is a grid; the rest is not read.
            scale: (out, groups), with a grid.
            zero: (out, groups), with an asymmetric grid.

        Raises:
            PlanError: If the mask keeps another number of weights than the layout.
        """
        if int(mask.sum()) != self.kept:
            raise PlanError(
                f"the mask of a weight of shape {self.shape} keeps {int(mask.sum())} weights, "
                f"the layout {self.kept}."
            )
        values = pack_values(mask, dense, self.dtype, self.grid, (scale, zero))
        return CompressedWeight(self, {"mask": pack_bits(mask.to(torch.uint8), 1), **values})

    def keep_mask(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the mask (out, in) bool, True is kept."""
        mask: Tensor = unpack_bits(tensors["mask"], 1, self.shape[1]).view(torch.bool)
        return mask

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return decode_values(self.keep_mask(tensors), tensors, self.grid)

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in); the mask and the values stay packed."""
        values = value_operands(tensors, self.grid)
        return bitmask_matmul(inputs, tensors["mask"], *values, tensors.get(STARTS))

    def settle(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Add where each row's values begin, (out + 1,); a processor, which decodes, counts."""
        mask = tensors["mask"]
        return dict(tensors) | ({} if mask.device.type == "cpu" else {STARTS: row_starts(mask)})

    def unsettle(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the stored tensors."""
        return {name: tensor for name, tensor in tensors.items() if name != STARTS}

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Keep the mask, round the rest to the stored grid or dtype."""
        mask = self.keep_mask(tensors)
        projected = project_values(weight, mask, tensors, self.dtype, self.grid)
        return straight_through(weight, projected, mask)

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Keep the mask, store the rest on the stored grid or in the dtype."""
        mask = self.keep_mask(tensors)
        return CompressedWeight(self, store_values(weight, mask, tensors, self.dtype, self.grid))

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf | None:
        """Return the kept weights as a matrix; ``None`` when they are not on a grid."""
        if self.grid is None:
            return None
        return sparse_leaf(weight, self.keep_mask(tensors), tensors, self.grid, self.pack)

    @classmethod
    def fields_from_json(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments of :meth:`to_json`'s fields."""
        return {**data, "shape": tuple(data["shape"]), "grid": Grid.from_json(data["grid"])}
