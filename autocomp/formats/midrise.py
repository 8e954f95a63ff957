"""Codes on a symmetric grid a row, or one of all, without a zero: ``…, −1/2, 1/2, …`` steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.sketch import TensorInfo
from autocomp.formats.affine import Affine
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.straight_through import straight_through


@dataclass(frozen=True, slots=True)
class Midrise(Format):
    """``w = scale · (code − (2^bits − 1)/2)``: an affine grid whose zero point need not be stored.

    ``codes`` (out, ceil(in·bits/8)) uint8 and ``scale`` float16, (out, 1) or (1, 1).

    Args:
        bits: Bits a code: 2, 3, 4, 5, 6 or 8.
        single: All rows share one scale.
    """

    name: ClassVar[str] = "midrise"

    bits: int
    single: bool = False

    def __post_init__(self) -> None:
        """Check shape and bits.

        Raises:
            PlanError: If the bits are none of those.
        """
        Format.__post_init__(self)
        Affine.__post_init__(self._affine)

    @property
    def _affine(self) -> Affine:
        return Affine(self.shape, self.bits)

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the affine format."""
        scale = tensors["scale"].expand(self.shape[0], 1)
        zero = torch.full_like(scale, ((1 << self.bits) - 1) / 2)
        return {**tensors, "scale": scale, "zero": zero}

    def _stored(self, weight: CompressedWeight) -> CompressedWeight:
        """Return a weight of the affine format without its zero points."""
        codes, scale = weight.tensors["codes"], weight.tensors["scale"]
        if self.single:
            scale = scale[:1].clone()
        return CompressedWeight(self, {"codes": codes, "scale": scale.contiguous()})

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``codes`` and ``scale``."""
        rows = 1 if self.single else self.shape[0]
        codes = self._affine.tensors()["codes"]
        return {"codes": codes, "scale": TensorInfo((rows, 1), "float16")}

    def pack(self, codes: Tensor, scale: Tensor) -> CompressedWeight:
        """Store codes (out, in) in ``0 … 2^bits − 1`` with scales (out, 1) or (1, 1).

        Raises:
            NumericalError: If a scale is not finite in float16.
        """
        return self._stored(self._affine.pack(codes, scale, torch.zeros_like(scale)))

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return self._affine.to_dense(self._whole(tensors))

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Round to the stored grid."""
        return straight_through(weight, self.store(weight, tensors).to_dense())

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the codes of the nearest points of the stored grid."""
        return self._stored(self._affine.store(weight, self._whole(tensors)))

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf | None:
        """Return the whole matrix, unless a scale is not a row's own; its zero points stay."""
        if self.single:
            return None
        leaf = self._affine.grid_leaf(weight, self._whole(tensors))
        return replace(
            leaf, symmetric=True, regrid=lambda codes, scale, zero: self.pack(codes, scale)
        )
