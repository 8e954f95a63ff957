"""A weight whose input is changed first: scaled, rotated, or rounded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import (
    CompressedWeight,
    Format,
    Operands,
    format_from_json,
    joined,
    within,
)
from autocomp.formats.float import Float
from autocomp.formats.float_input import RoundFloatInput
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.round_regular import RoundRegular
from autocomp.formats.steps import RoundInput, Step, step_from_json
from autocomp.formats.uniform import Uniform
from autocomp.kernels.int8_matmul import int8_matmul
from autocomp.kernels.int8_outlier_matmul import int8_outlier_matmul
from autocomp.kernels.quantize_activations import quantize_activations


@dataclass(frozen=True, slots=True)
class Prepared(Format):
    """``y = Ŵ' a(T x)``: an input step T, rounding a of what it gives, and the stored weight Ŵ'.

    Decoded it is ``Ŵ' T``, which leaves the rounding of the input out.

    Args:
        inner: Layout of the stored weight ``W T⁻¹``; its tensors are called ``inner.*``.
        input: The input step, tensors ``input.*``, or ``None``.
        activation: The rounding of the input, tensors ``activation.*``, or ``None``.
    """

    name: ClassVar[str] = "prepared"

    inner: Format
    input: Step | None = None
    activation: Step | None = None

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            PlanError: If there is no step, or a part has another shape.
        """
        Format.__post_init__(self)
        steps = [step for step in (self.input, self.activation) if step is not None]
        if not steps:
            raise PlanError("a prepared weight needs an input step or a rounded input.")
        if self.inner.shape != self.shape or any(
            step.in_features != self.shape[1] for step in steps
        ):
            raise PlanError(
                f"a prepared weight of shape {self.shape} needs an inner weight of that shape and "
                f"steps of {self.shape[1]} inputs, got {self.inner.shape} and "
                f"{[step.in_features for step in steps]}."
            )

    def tensors(self) -> dict[str, TensorInfo]:
        """Return the tensors of the steps and of the inner weight, prefixed."""
        parts = (("input", self.input), ("activation", self.activation), ("inner", self.inner))
        return {
            f"{prefix}.{name}": info
            for prefix, part in parts
            if part is not None
            for name, info in part.tensors().items()
        }

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector by the input step and by the inner weight."""
        step = 0 if self.input is None else self.input.multiply_adds
        return step + self.inner.multiply_adds

    def pack(
        self,
        inner: CompressedWeight,
        input: Mapping[str, Tensor] | None = None,
        activation: Mapping[str, Tensor] | None = None,
    ) -> CompressedWeight:
        """Store the inner weight and the tensors of the steps.

        Raises:
            PlanError: If the inner weight has another layout than this format names.
        """
        if inner.layout != self.inner:
            raise PlanError(f"the inner weight is {inner.layout}, the layout has {self.inner}.")
        parts = {"input": input or {}, "activation": activation or {}, "inner": inner.tensors}
        return CompressedWeight(self, joined(parts))

    def unpack(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Return the inner weight."""
        return CompressedWeight(self.inner, within(tensors, "inner"))

    def prepare(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return ``a(T x)`` of inputs (…, in), in their dtype."""
        inputs = self._stepped(tensors, inputs)
        if self.activation is not None:
            inputs = self.activation.apply(inputs, within(tensors, "activation"))
        return inputs

    def _stepped(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return ``T x`` of inputs (…, in), in their dtype."""
        if self.input is None:
            return inputs
        return self.input.apply(inputs, within(tensors, "input"))

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply prepared inputs (rows, in); as codes where both sides are, of one kind."""
        inner = within(tensors, "inner")
        activation = self.activation
        if isinstance(activation, RoundFloatInput) and isinstance(self.inner, Float):
            points, step = activation.points(self._stepped(tensors, inputs))
            return self.inner.product(inner, points.to(inputs.dtype), step)
        if self._is_int8 and isinstance(activation, RoundRegular):
            stepped = self._stepped(tensors, inputs)
            return int8_outlier_matmul(
                stepped, inner["codes"], inner["scale"], activation.threshold
            )
        if self._is_int8 and isinstance(activation, RoundInput) and activation.bits <= 8:
            stepped = self._stepped(tensors, inputs)
            if activation.granularity == "token":
                codes, step = quantize_activations(stepped, activation.bits)
            else:
                codes, step = activation.codes(stepped, within(tensors, "activation"))
            return int8_matmul(codes.to(inputs.dtype), step, inner["codes"], inner["scale"])
        return self.inner.matmul(inner, self.prepare(tensors, inputs))

    @property
    def _is_int8(self) -> bool:
        """Whether the weight is of symmetric 8-bit codes with a scale a row."""
        inner = self.inner
        return (
            isinstance(inner, Uniform)
            and (inner.bits, inner.symmetric) == (8, True)
            and inner.grid.groups(self.shape[1]) == 1
        )

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Return rows (n, in) fp32, the input step merged."""
        return self.merge(self.inner.rows(within(tensors, "inner"), index), tensors)

    def settle(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Settle the inner weight."""
        return self._with_inner(tensors, self.inner.settle(within(tensors, "inner"), dtype))

    def unsettle(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the stored tensors of the inner weight."""
        return self._with_inner(tensors, self.inner.unsettle(within(tensors, "inner")))

    @staticmethod
    def _with_inner(
        tensors: Mapping[str, Tensor], inner: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the tensors of the steps, beside others of the inner weight."""
        steps = {name: tensor for name, tensor in tensors.items() if not name.startswith("inner.")}
        return {**steps, **joined({"inner": inner})}

    def operands(self, tensors: Mapping[str, Tensor]) -> Operands:
        """Return the stored weight and what prepares its input."""
        inner = self.unpack(tensors)
        steps = {name: tensor for name, tensor in tensors.items() if not name.startswith("inner.")}
        return Operands(inner.to_dense(), partial(self.prepare, steps))

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to ``Ŵ' T``, (out, in) fp32."""
        return self.merge(self.unpack(tensors).to_dense(), tensors)

    def absorb(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``W T⁻¹``, (out, in)."""
        if self.input is None:
            return weight
        return self.input.absorb(weight, within(tensors, "input"))

    def merge(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``W' T``, (out, in)."""
        if self.input is None:
            return weight
        return self.input.merge(weight, within(tensors, "input"))

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Project ``W T⁻¹`` as the inner format does; the steps stay."""
        inner = self.unpack(tensors)
        projected = self.inner.fake_quant(self.absorb(weight, tensors), inner.tensors)
        return self.merge(projected, tensors)

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store ``W T⁻¹`` as the inner format does; the steps stay."""
        inner = self.unpack(tensors)
        stored = self.inner.store(self.absorb(weight, tensors), inner.tensors)
        return self.pack(stored, within(tensors, "input"), within(tensors, "activation"))

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf | None:
        """Return the inner weight's, which stands for ``W T⁻¹``; the steps stay."""
        leaf = self.unpack(tensors).grid_leaf(self.absorb(weight, tensors))
        if leaf is None:
            return None
        steps = within(tensors, "input"), within(tensors, "activation")
        return replace(leaf, regrid=lambda *grid: self.pack(leaf.regrid(*grid), *steps))

    @classmethod
    def fields_from_json(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments of :meth:`to_json`'s fields."""
        return {
            **data,
            "shape": tuple(data["shape"]),
            "inner": format_from_json(data["inner"]),
            "input": step_from_json(data["input"]),
            "activation": step_from_json(data["activation"]),
        }
