"""What a format is: a complete layout of one compressed weight, and the weight stored in it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from autocomp.core.errors import PlanError, StoreError
from autocomp.core.registry import FORMATS
from autocomp.core.sketch import TensorInfo
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.steps import Step
from autocomp.kernels.dense_matmul import dense_matmul


def tensor_info(tensor: Tensor) -> TensorInfo:
    """Return shape and dtype of a tensor; the dtype as torch spells it, without ``torch.``."""
    return TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name such as ``float16``.

    Raises:
        PlanError: If torch has no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise PlanError(f"torch has no dtype {name!r}; use float16, bfloat16 or float32.")
    return dtype


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors called ``<prefix>.<name>`` under their own names."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of several parts as ``<part>.<name>``; :func:`within` takes one out."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, tensors in parts.items()
        for name, tensor in tensors.items()
    }


class Operands(NamedTuple):
    """What a linear computes with: ``y = prepare(x) · weightᵀ + bias``.

    Args:
        weight: (out, in) of a floating dtype.
        prepare: Changes inputs (…, in) in their dtype; ``None`` leaves them as they are.
    """

    weight: Tensor
    prepare: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Format(ABC):
    """A complete layout: all that is needed to know tensor names, shapes, dtypes, and to decode.

    Subclasses are frozen dataclasses with the class attributes ``name`` (their key in ``FORMATS``)
    and ``version`` (raise it when stored tensors change meaning), and a ``pack`` of their own.

    Args:
        shape: (out, in) of the weight.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1

    shape: tuple[int, int]

    def __post_init__(self) -> None:
        """Check the shape.

        Raises:
            PlanError: If a dimension is not positive.
        """
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise PlanError(
                f"{self.name}: a weight needs a shape (out, in) of at least (1, 1), "
                f"got {tuple(self.shape)}."
            )

    @abstractmethod
    def tensors(self) -> dict[str, TensorInfo]:
        """Return the stored tensors by local name, in a fixed order."""

    @abstractmethod
    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32 on the device of ``tensors``."""

    def operands(self, tensors: Mapping[str, Tensor]) -> Operands:
        """Return what a linear multiplies, (out, in) fp32, and what is done to its input first."""
        return Operands(self.to_dense(tensors))

    def prepare(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return inputs (…, in) as the weight of :meth:`operands` expects them."""
        return inputs

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return ``x Ŵᵀ`` through the kernel operations, keeping no decoded weight.

        Args:
            tensors: The stored tensors, or what :meth:`settle` made of them.
            inputs: (rows, in) of a floating dtype.

        Returns:
            (rows, out) in the dtype of the inputs.
        """
        return dense_matmul(inputs, self.to_dense(tensors))

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Return rows of the decoded weight, (n, in) fp32, for integers (n,).

        Args:
            tensors: The stored tensors, or what :meth:`settle` made of them.
            index: Which rows.
        """
        return self.to_dense(tensors)[index]

    def settle(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return tensors of about the same bytes in the order that the fastest kernel reads.

        They serve :meth:`matmul` and :meth:`rows`; :meth:`unsettle` gives the stored ones back.

        Args:
            tensors: The stored tensors, on the device where they are used.
            dtype: Dtype of the inputs to come.
        """
        return dict(tensors)

    def unsettle(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the stored tensors, to the bit; the inverse of :meth:`settle`."""
        return dict(tensors)

    @abstractmethod
    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Project a trained weight onto what is stored, with a straight-through gradient.

        Grids, masks and bases stay as stored; only codes and values follow the weight, so training
        never changes the format or its bytes.

        Args:
            weight: (out, in) fp32.
            tensors: The stored tensors.

        Returns:
            (out, in) fp32: the weight that the format would hold for ``weight``.
        """

    @abstractmethod
    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> "CompressedWeight":
        """Store a trained weight in place of what is stored; the inverse of training.

        Grids, masks and bases stay; what is stored decodes to ``fake_quant(weight, tensors)``.

        Args:
            weight: (out, in) fp32.
            tensors: The stored tensors.
        """

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf | None:
        """Return the matrix on a uniform grid inside; ``None`` when there is not exactly one.

        Args:
            weight: (out, in) fp32, what the compressed weight stands for.
            tensors: The stored tensors.
        """
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors, exactly."""
        return sum(info.nbytes for info in self.tensors().values())

    @property
    def multiply_adds(self) -> int:
        """Multiplications of one input vector by what is stored: ``out · in`` unless overridden.

        What only decodes the weight is left out, so codes count as the numbers they stand for.
        """
        return self.shape[0] * self.shape[1]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form that :func:`format_from_json` reads back."""
        values = {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}
        return {"format": self.name, "version": self.version, **values}

    @classmethod
    def fields_from_json(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments of :meth:`to_json`'s fields."""
        return {**data, "shape": tuple(data["shape"])}


def _to_json(value: Any) -> Any:
    """Return the JSON form of a field: a nested format, a dataclass, a tuple or a scalar."""
    if isinstance(value, Format | Step):
        return value.to_json()
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def format_from_json(data: Mapping[str, Any]) -> Format:
    """Return the format of its JSON form.

    Raises:
        ConfigError: If the format is unknown.
        StoreError: If it was written by another version, or fields are missing or unknown.
    """
    values = {key: value for key, value in data.items() if key not in ("format", "version")}
    kind: type[Format] = FORMATS[data.get("format", "")]
    if data.get("version") != kind.version:
        raise StoreError(
            f"format {kind.name} of version {data.get('version')!r} cannot be read; this autocomp "
            f"reads version {kind.version}. Compress the model again."
        )
    try:
        return kind(**kind.fields_from_json(values))
    except (KeyError, TypeError) as error:
        raise StoreError(f"the description of a {kind.name} weight is damaged: {error}") from error


@dataclass(frozen=True, slots=True)
class CompressedWeight:
    """A weight as it is stored.

    Args:
        layout: The format instance.
        tensors: Its tensors by local name.
    """

    layout: Format
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors really hold."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def to(self, device: torch.device) -> "CompressedWeight":
        """Return the weight on a device."""
        return CompressedWeight(
            self.layout, {name: tensor.to(device) for name, tensor in self.tensors.items()}
        )

    def to_dense(self) -> Tensor:
        """Decode to (out, in) fp32."""
        return self.layout.to_dense(self.tensors)

    def operands(self) -> Operands:
        """Return what a linear multiplies, and what is done to its input first."""
        return self.layout.operands(self.tensors)

    def grid_leaf(self, weight: Tensor) -> GridLeaf | None:
        """Return the matrix on a uniform grid inside, for the (out, in) fp32 original weight."""
        return self.layout.grid_leaf(weight, self.tensors)

    def check(self) -> None:
        """Compare the tensors with the layout.

        Raises:
            StoreError: If a name, a shape or a dtype differs; the message says which.
        """
        expected = self.layout.tensors()
        found = {name: tensor_info(tensor) for name, tensor in self.tensors.items()}
        if expected.keys() != found.keys():
            raise StoreError(
                f"a {self.layout.name} weight holds the tensors {sorted(expected)}, "
                f"got {sorted(found)}."
            )
        for name, info in expected.items():
            if found[name] != info:
                raise StoreError(
                    f"tensor {name!r} of a {self.layout.name} weight of shape "
                    f"{self.layout.shape}: expected {info.dtype} {info.shape}, "
                    f"got {found[name].dtype} {found[name].shape}."
                )
