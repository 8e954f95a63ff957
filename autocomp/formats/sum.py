"""A weight and a correction of it, stored side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format, format_from_json, joined, within
from autocomp.formats.factors import operand
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.outliers import Outliers, csr
from autocomp.kernels.dense_sparse_matmul import dense_sparse_matmul
from autocomp.kernels.low_rank_matmul import Packed


@dataclass(frozen=True, slots=True)
class Sum(Format):
    """``base + correction``, each in a format of its own.

    Args:
        base: Layout of the weight; its tensors are called ``base.*``.
        correction: Layout of what is added, such as two factors; tensors ``correction.*``.
    """

    name: ClassVar[str] = "sum"

    base: Format
    correction: Format

    def __post_init__(self) -> None:
        """Check shapes.

        Raises:
            PlanError: If the parts have another shape.
        """
        Format.__post_init__(self)
        if not self.base.shape == self.correction.shape == self.shape:
            raise PlanError(
                f"the parts of a sum of shape {self.shape} have that shape, got "
                f"{self.base.shape} and {self.correction.shape}."
            )

    def tensors(self) -> dict[str, TensorInfo]:
        """Return the tensors of both parts, prefixed."""
        return {
            f"{prefix}.{name}": info
            for prefix, part in (("base", self.base), ("correction", self.correction))
            for name, info in part.tensors().items()
        }

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector by both parts."""
        return self.base.multiply_adds + self.correction.multiply_adds

    def pack(self, base: CompressedWeight, correction: CompressedWeight) -> CompressedWeight:
        """Store two compressed weights.

        Raises:
            PlanError: If a part has another layout than this format names.
        """
        if (base.layout, correction.layout) != (self.base, self.correction):
            raise PlanError(
                f"the parts are {base.layout} and {correction.layout}, "
                f"the layout has {self.base} and {self.correction}."
            )
        return CompressedWeight(
            self, joined({"base": base.tensors, "correction": correction.tensors})
        )

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[CompressedWeight, CompressedWeight]:
        """Return base and correction; the inverse of :meth:`pack`."""
        return (
            CompressedWeight(self.base, within(tensors, "base")),
            CompressedWeight(self.correction, within(tensors, "correction")),
        )

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        base, correction = self.unpack(tensors)
        return base.to_dense() + correction.to_dense()

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in) by both parts, at once where a kernel does, and add."""
        stored, correction = within(tensors, "base"), within(tensors, "correction")
        if isinstance(self.correction, Outliers):
            packed = operand(self.base, stored)
            if isinstance(packed, Packed):
                return dense_sparse_matmul(inputs, packed, *csr(correction))
        return self.base.matmul(stored, inputs) + self.correction.matmul(correction, inputs)

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Return rows (n, in) fp32 of both parts, added."""
        base = self.base.rows(within(tensors, "base"), index)
        return base + self.correction.rows(within(tensors, "correction"), index)

    def settle(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Settle both parts."""
        base, correction = within(tensors, "base"), within(tensors, "correction")
        return joined(
            {
                "base": self.base.settle(base, dtype),
                "correction": self.correction.settle(correction, dtype),
            }
        )

    def unsettle(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the stored tensors of both parts."""
        base, correction = within(tensors, "base"), within(tensors, "correction")
        return joined(
            {
                "base": self.base.unsettle(base),
                "correction": self.correction.unsettle(correction),
            }
        )

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Keep the correction and project the rest as the base's format does."""
        base, correction = self.unpack(tensors)
        added = correction.to_dense()
        return self.base.fake_quant(weight - added, base.tensors) + added

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Keep the correction and store the rest as the base's format does."""
        base, correction = self.unpack(tensors)
        rest = weight - correction.to_dense()
        return self.pack(self.base.store(rest, base.tensors), correction)

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf | None:
        """Return the base's; the correction stays and is taken off the weight."""
        base, correction = self.unpack(tensors)
        added = correction.to_dense()
        leaf = base.grid_leaf(weight - added)
        if leaf is None:
            return None
        return replace(
            leaf,
            regrid=lambda *grid: self.pack(leaf.regrid(*grid), correction),
            offset=added if leaf.offset is None else leaf.offset + added,
        )

    @classmethod
    def fields_from_json(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments of :meth:`to_json`'s fields."""
        return {
            **data,
            "shape": tuple(data["shape"]),
            "base": format_from_json(data["base"]),
            "correction": format_from_json(data["correction"]),
        }
