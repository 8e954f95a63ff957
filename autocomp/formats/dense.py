"""The weight itself, in a floating-point dtype."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format, torch_dtype
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.dense_matmul import dense_matmul


@dataclass(frozen=True, slots=True)
class Dense(Format):
    """One tensor ``weight`` (out, in).

    Args:
        dtype: ``float16``, ``bfloat16`` or ``float32``.
    """

    name: ClassVar[str] = "dense"

    dtype: str

    def tensors(self) -> dict[str, TensorInfo]:
        """Return the single tensor."""
        return {"weight": TensorInfo(self.shape, self.dtype)}

    def pack(self, weight: Tensor) -> CompressedWeight:
        """Store a weight (out, in) of any floating dtype, rounded to ``dtype``."""
        return CompressedWeight(
            self, {"weight": weight.detach().to(torch_dtype(self.dtype)).clone()}
        )

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return tensors["weight"].to(torch.float32)

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in)."""
        return dense_matmul(inputs, tensors["weight"])

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Return rows (n, in) fp32."""
        return tensors["weight"][index].to(torch.float32)

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Round to ``dtype``; nothing stored is needed."""
        return straight_through(weight, weight.to(torch_dtype(self.dtype)).to(torch.float32))

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the weight itself."""
        return self.pack(weight)
