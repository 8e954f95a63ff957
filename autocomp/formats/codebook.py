"""Codebooks: each row has a few values of its own, and packed codes that point at them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats._levels import nearest_level
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.bits import pack_bits, packed_bytes
from autocomp.kernels.codebook_matmul import codebook_matmul, codebook_weight


@dataclass(frozen=True, slots=True)
class Codebook(Format):
    """``codes`` (out, ceil(in·bits/8)) uint8 and ``codebook`` (out, 2^bits) float16.

    Decoding is ``w_ij = codebook_i[code_ij]``.

    Args:
        bits: Bits a code, 1 to 8.
    """

    name: ClassVar[str] = "codebook"

    bits: int

    def __post_init__(self) -> None:
        """Check shape and bits.

        Raises:
            PlanError: If the bits are out of range.
        """
        Format.__post_init__(self)
        if not 1 <= self.bits <= 8:
            raise PlanError(f"a codebook has 1 to 8 bits a code, got {self.bits}.")

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``codes`` and ``codebook``."""
        rows, columns = self.shape
        return {
            "codes": TensorInfo((rows, packed_bytes(columns, self.bits)), "uint8"),
            "codebook": TensorInfo((rows, 1 << self.bits), "float16"),
        }

    def pack(self, codes: Tensor, codebook: Tensor) -> CompressedWeight:
        """Store codes (out, in) in ``0 … 2^bits − 1`` and the values (out, 2^bits) they mean.

        Raises:
            NumericalError: If a value is not finite in float16.
        """
        half = codebook.detach().to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise NumericalError("a value of a codebook is not finite in float16.")
        return CompressedWeight(self, {"codes": pack_bits(codes, self.bits), "codebook": half})

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        codes, levels = tensors["codes"], tensors["codebook"]
        return codebook_weight(codes, levels, None, self.bits, self.shape[1])

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in); the codes stay packed."""
        return codebook_matmul(inputs, tensors["codes"], tensors["codebook"], None, self.bits)

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Decode rows (n, in) fp32 and no others."""
        codes, levels = tensors["codes"][index], tensors["codebook"][index]
        return codebook_weight(codes, levels, None, self.bits, self.shape[1])

    def codes(self, weight: Tensor, codebook: Tensor) -> Tensor:
        """Return the codes (out, in) int64 of the nearest values of a codebook (out, 2^bits)."""
        return nearest_level(weight.detach(), codebook.to(torch.float32))

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Take the nearest values of the stored codebook."""
        codebook = tensors["codebook"]
        nearest = codebook.to(torch.float32).gather(1, self.codes(weight, codebook))
        return straight_through(weight, nearest)

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the codes of the nearest values of the stored codebook."""
        codebook = tensors["codebook"]
        return self.pack(self.codes(weight, codebook), codebook)
