"""Nothing at all: the weight of a sub-block that is left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format


@dataclass(frozen=True, slots=True)
class Bypass(Format):
    """No tensors, zero bytes; decodes to zeros. A sub-block has the shape (0, 0)."""

    name: ClassVar[str] = "bypass"

    def __post_init__(self) -> None:
        """Accept every shape: there is nothing to store."""

    def tensors(self) -> dict[str, TensorInfo]:
        """Return no tensors."""
        return {}

    @property
    def multiply_adds(self) -> int:
        """Return 0."""
        return 0

    def pack(self) -> CompressedWeight:
        """Return the empty weight."""
        return CompressedWeight(self, {})

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return zeros (out, in) fp32 on the CPU."""
        return torch.zeros(self.shape)

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return zeros that pass no gradient."""
        return torch.zeros_like(weight)

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store nothing."""
        return self.pack()
