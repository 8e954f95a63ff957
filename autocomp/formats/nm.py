"""N:M sparsity: ``keep`` of every ``m`` consecutive inputs are stored, with their positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
from autocomp.kernels.bits import pack_bits, packed_bytes
from autocomp.kernels.nm_matmul import nm_mask, nm_matmul


@dataclass(frozen=True, slots=True)
class NM(Format):
    """``index`` (out, bytes) uint8, packed ascending positions, and the kept values, row-major.

    A position takes ``ceil(log2 m)`` bits.

    Args:
        keep: Weights kept of every ``m``.
        m: Pattern length, 2 to 256; it divides the inputs.
        dtype: Dtype of the values when there is no grid.
        grid: Grid of the kept values, or ``None`` to store them in ``dtype``.
    """

    name: ClassVar[str] = "nm"

    keep: int
    m: int
    dtype: str
    grid: Grid | None = None

    def __post_init__(self) -> None:
        """Check shape, pattern and grid.

        Raises:
            PlanError: If the pattern does not fit the inputs or the grid does not.
        """
        Format.__post_init__(self)
        if not (2 <= self.m <= 256 and 1 <= self.keep <= self.m):
            raise PlanError(
                f"a pattern keeps 1..m of m = 2..256 weights, got {self.keep}:{self.m}."
            )
        if self.shape[1] % self.m:
            raise PlanError(
                f"the pattern {self.keep}:{self.m} does not divide the {self.shape[1]} inputs "
                f"of a weight of shape {self.shape}. Use a pattern length that does."
            )
        if self.grid is not None:
            self.grid.check(self.shape)

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return self.shape[0] * self._row_kept

    @property
    def _row_kept(self) -> int:
        """Weights kept in a row."""
        return self.shape[1] // self.m * self.keep

    @property
    def _index_bits(self) -> int:
        """Bits of a position."""
        return (self.m - 1).bit_length()

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``index``, ``values`` and the tensors of the grid."""
        index = (self.shape[0], packed_bytes(self._row_kept, self._index_bits))
        return {
            "index": TensorInfo(index, "uint8"),
            **value_tensors(self.shape, self.kept, self.dtype, self.grid),
        }

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector: by the kept weights only."""
        return self.kept

    def pack(
        self, mask: Tensor, dense: Tensor, scale: Tensor | None = None, zero: Tensor | None = None
    ) -> CompressedWeight:
        """Store the weights that a mask keeps.

        Args:
            mask: (out, in) bool, True is kept; exactly ``keep`` of every ``m``.
            dense: (out, in): values, or integer codes when there is a grid; the rest is not read.
            scale: (out, groups), with a grid.
            zero: (out, groups), with an asymmetric grid.

        Raises:
            PlanError: If the mask does not follow the pattern.
        """
        patterns = mask.reshape(self.shape[0], -1, self.m)
        if not bool((patterns.sum(dim=2) == self.keep).all()):
            raise PlanError(
                f"the mask of a weight of shape {self.shape} does not keep exactly "
                f"{self.keep} of every {self.m} inputs."
            )
        positions = patterns.nonzero()[:, 2].view(self.shape[0], self._row_kept)
        values = pack_values(mask, dense, self.dtype, self.grid, (scale, zero))
        return CompressedWeight(self, {"index": pack_bits(positions, self._index_bits), **values})

    def keep_mask(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the mask (out, in) bool, True is kept."""
        return nm_mask(tensors["index"], self.keep, self.m, self.shape[1])

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return decode_values(self.keep_mask(tensors), tensors, self.grid)

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in); positions and values stay packed."""
        pattern = (self.keep, self.m)
        values = value_operands(tensors, self.grid)
        return nm_matmul(inputs, tensors["index"], pattern, *values)

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
