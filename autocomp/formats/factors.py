"""A low-rank weight: two stored factors whose product it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import (
    CompressedWeight,
    Format,
    format_from_json,
    joined,
    within,
)
from autocomp.formats.dense import Dense
from autocomp.formats.straight_through import straight_through
from autocomp.formats.uniform import TILES, Uniform
from autocomp.formats.uniform_tensor import UniformTensor
from autocomp.kernels.low_rank_matmul import Packed, low_rank_matmul


@dataclass(frozen=True, slots=True)
class Factors(Format):
    """``left`` (out, rank) times ``right`` (rank, in), each in a format of its own.

    Args:
        rank: Inner dimension.
        left: Layout of the left factor; its tensors are called ``left.*``.
        right: Layout of the right factor; its tensors are called ``right.*``.
    """

    name: ClassVar[str] = "factors"

    rank: int
    left: Format
    right: Format

    def __post_init__(self) -> None:
        """Check shapes.

        Raises:
            PlanError: If the factors do not multiply to the shape.
        """
        Format.__post_init__(self)
        shapes = (self.shape[0], self.rank), (self.rank, self.shape[1])
        if (self.left.shape, self.right.shape) != shapes:
            raise PlanError(
                f"factors of rank {self.rank} of a weight of shape {self.shape} have the shapes "
                f"{shapes[0]} and {shapes[1]}, got {self.left.shape} and {self.right.shape}."
            )

    def tensors(self) -> dict[str, TensorInfo]:
        """Return the tensors of both factors, prefixed."""
        return {
            f"{side}.{name}": info
            for side, layout in (("left", self.left), ("right", self.right))
            for name, info in layout.tensors().items()
        }

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector by one factor, then by the other."""
        return self.left.multiply_adds + self.right.multiply_adds

    def pack(self, left: CompressedWeight, right: CompressedWeight) -> CompressedWeight:
        """Store two compressed factors.

        Raises:
            PlanError: If a factor has another layout than this format names.
        """
        if (left.layout, right.layout) != (self.left, self.right):
            raise PlanError(
                f"the factors are {left.layout} and {right.layout}, "
                f"the layout has {self.left} and {self.right}."
            )
        return CompressedWeight(self, joined({"left": left.tensors, "right": right.tensors}))

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[CompressedWeight, CompressedWeight]:
        """Return the two compressed factors; the inverse of :meth:`pack`."""
        left, right = within(tensors, "left"), within(tensors, "right")
        return CompressedWeight(self.left, left), CompressedWeight(self.right, right)

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to ``left @ right``, (out, in) fp32."""
        left, right = self.unpack(tensors)
        return left.to_dense() @ right.to_dense()

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in) by one factor, then by the other."""
        left, right = within(tensors, "left"), within(tensors, "right")
        outer, inner = operand(self.left, left), operand(self.right, right)
        if outer is None or inner is None:
            return self.left.matmul(left, self.right.matmul(right, inputs))
        return low_rank_matmul(inputs, outer, inner)

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Return rows (n, in) fp32: those of the left factor, multiplied."""
        right = self.right.to_dense(self.right.unsettle(within(tensors, "right")))
        return self.left.rows(within(tensors, "left"), index) @ right

    def settle(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Settle both factors."""
        left, right = within(tensors, "left"), within(tensors, "right")
        return joined(
            {"left": self.left.settle(left, dtype), "right": self.right.settle(right, dtype)}
        )

    def unsettle(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the stored tensors of both factors."""
        left, right = within(tensors, "left"), within(tensors, "right")
        return joined({"left": self.left.unsettle(left), "right": self.right.unsettle(right)})

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Keep the stored left factor L and refit the right one: ``L · project(L⁺ W)``."""
        return straight_through(weight, self.store(weight, tensors).to_dense())

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Keep the left factor and store the right one refitted to the weight."""
        left, right = self.unpack(tensors)
        refitted = torch.linalg.pinv(left.to_dense()) @ weight.detach()
        return self.pack(left, self.right.store(refitted, right.tensors))

    @classmethod
    def fields_from_json(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments of :meth:`to_json`'s fields."""
        return {
            **data,
            "shape": tuple(data["shape"]),
            "left": format_from_json(data["left"]),
            "right": format_from_json(data["right"]),
        }


def operand(layout: Format, tensors: Mapping[str, Tensor]) -> Tensor | Packed | None:
    """Return a factor as the kernel operation takes it; ``None`` where it takes no such format."""
    if isinstance(layout, Dense):
        return tensors["weight"]
    if isinstance(layout, UniformTensor):
        return operand(layout.rows_alike, layout.spread(tensors))
    if not isinstance(layout, Uniform) or TILES in tensors:
        return None
    return Packed(tensors["codes"], tensors["scale"], tensors.get("zero"), layout.bits)
