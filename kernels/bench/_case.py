"""What every bench file shares: shapes of real models, random packed tensors, and their bytes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """A linear of a real model: its name, (out, in)."""

    name: str
    features: int
    columns: int


SHAPES = (
    Shape("smollm2-135m q", 576, 576),
    Shape("smollm2-135m down", 576, 1536),
    Shape("llama-3-8b k", 1024, 4096),
    Shape("llama-3-8b q", 4096, 4096),
    Shape("llama-3-8b gate", 14336, 4096),
    Shape("llama-3-8b down", 4096, 14336),
    Shape("qwen2.5-7b gate", 18944, 3584),
    Shape("qwen2.5-7b down", 3584, 18944),
)
FEW = (SHAPES[1], SHAPES[4])
"""Shapes of a short run: a small one with odd widths, and the one that claims are about."""


@dataclass(frozen=True, slots=True)
class Case:
    """One call of an operation.

    Args:
        label: Shape and variant.
        arguments: What the operation is called with, on ``cuda`` or ``meta``.
        floor_bytes: Bytes that any implementation reads and writes at least.
        flops: Operations of the product.
        dense: (out, in) that a dense product of the same shape has; ``None`` without one.
    """

    label: str
    arguments: tuple[Any, ...]
    floor_bytes: int
    flops: int = 0
    dense: tuple[int, int] | None = None


def nbytes(*tensors: Tensor | None) -> int:
    """Return the bytes of tensors; ``None`` has none."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def product(label: str, arguments: Iterable[Any], features: int, *extra: Tensor) -> Case:
    """Return the case of a product of inputs (rows, in), the first argument.

    Args:
        label: Shape and variant.
        arguments: Of the operation.
        features: Outputs.
        extra: Tensors that are read beside the arguments.
    """
    found = tuple(arguments)
    inputs = found[0]
    rows, columns = inputs.shape
    read = nbytes(*(a for a in found if isinstance(a, Tensor)), *extra)
    written = rows * features * inputs.element_size()
    flops = 2 * rows * columns * features
    return Case(label, found, read + written, flops, (features, columns))


def codes(shape: tuple[int, ...], bits: int, device: str) -> Tensor:
    """Return random packed codes, the last dimension in bytes, uint8."""
    width = -(-shape[-1] * bits // 8)
    return _random_bytes((*shape[:-1], width), device)


def _random_bytes(shape: tuple[int, ...], device: str) -> Tensor:
    if device == "meta":
        return torch.empty(shape, dtype=torch.uint8, device=device)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)


def values(*shape: int, device: str, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return random values of a floating dtype."""
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.randn(shape, device=device).to(dtype)
