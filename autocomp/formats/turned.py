"""A weight whose outputs are turned back after it has multiplied."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format, format_from_json
from autocomp.formats.steps import Rotation, step_from_json


@dataclass(frozen=True, slots=True)
class Turned(Format):
    """``y = Uᵀ (Ŵ' x)`` with the stored weight ``Ŵ' ≈ U W``; U follows from its seed.

    Args:
        inner: Layout of the stored weight, whose tensors are all that is stored.
        output: The rotation U of ``out`` values.
    """

    name: ClassVar[str] = "turned"

    inner: Format
    output: Rotation

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            PlanError: If a part has another shape.
        """
        Format.__post_init__(self)
        if self.inner.shape != self.shape or self.output.in_features != self.shape[0]:
            raise PlanError(
                f"a turned weight of shape {self.shape} needs an inner weight of that shape and a "
                f"rotation of {self.shape[0]} values, got {self.inner.shape} and "
                f"{self.output.in_features}."
            )

    def tensors(self) -> dict[str, TensorInfo]:
        """Return the tensors of the inner weight."""
        return self.inner.tensors()

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector by the inner weight, and of its outputs by U."""
        return self.inner.multiply_adds + self.output.multiply_adds

    def pack(self, inner: CompressedWeight) -> CompressedWeight:
        """Store the weight ``U W``.

        Raises:
            PlanError: If it has another layout than this format names.
        """
        if inner.layout != self.inner:
            raise PlanError(f"the inner weight is {inner.layout}, the layout has {self.inner}.")
        return CompressedWeight(self, inner.tensors)

    def turn(self, weight: Tensor) -> Tensor:
        """Return ``U W``, (out, in), the weight to store."""
        return self.output.absorb(weight.T, {}).T.contiguous()

    def back(self, weight: Tensor) -> Tensor:
        """Return ``Uᵀ W'``, (out, in)."""
        return self.output.merge(weight.T, {}).T.contiguous()

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to ``Uᵀ Ŵ'``, (out, in) fp32."""
        return self.back(self.inner.to_dense(tensors))

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in) by the inner weight and turn the outputs back."""
        outputs = self.inner.matmul(tensors, inputs)
        return self.output.merge(outputs.float(), {}).to(inputs.dtype)

    def settle(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Settle the inner weight."""
        return self.inner.settle(tensors, dtype)

    def unsettle(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the stored tensors of the inner weight."""
        return self.inner.unsettle(tensors)

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Project ``U W`` as the inner format does."""
        return self.back(self.inner.fake_quant(self.turn(weight), tensors))

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store ``U W`` as the inner format does."""
        return self.pack(self.inner.store(self.turn(weight), tensors))

    @classmethod
    def fields_from_json(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments of :meth:`to_json`'s fields."""
        return {
            **data,
            "shape": tuple(data["shape"]),
            "inner": format_from_json(data["inner"]),
            "output": step_from_json(data["output"]),
        }
