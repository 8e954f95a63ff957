"""A uniform grid of a whole matrix: packed codes and two scalars."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.uniform import Uniform


@dataclass(frozen=True, slots=True)
class UniformTensor(Format):
    """``w = scale · (code − zero)`` with one scale and one zero point.

    ``codes`` (out, ceil(in·bits/8)) uint8, ``scale`` (1, 1) float16, ``zero`` (1, 1) uint8. It is
    for small matrices such as factors, in whose rows a scale of each would weigh.

    Args:
        bits: Bits a code: 2, 3, 4, 5, 6 or 8.
    """

    name: ClassVar[str] = "uniform_tensor"

    bits: int

    def __post_init__(self) -> None:
        """Check shape and bits.

        Raises:
            PlanError: If the bits are none of those.
        """
        Format.__post_init__(self)
        Uniform.__post_init__(self.rows_alike)

    @property
    def rows_alike(self) -> Uniform:
        """The layout with a scale and a zero point a row, which are here the same."""
        return Uniform(self.shape, self.bits)

    def spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of :attr:`rows_alike`, the two scalars repeated for every row."""
        sides = {side: tensors[side].repeat(self.shape[0], 1) for side in ("scale", "zero")}
        return {"codes": tensors["codes"], **sides}

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``codes``, ``scale`` and ``zero``."""
        codes = self.rows_alike.tensors()["codes"]
        scale, zero = TensorInfo((1, 1), "float16"), TensorInfo((1, 1), "uint8")
        return {"codes": codes, "scale": scale, "zero": zero}

    def pack(self, codes: Tensor, scale: Tensor, zero: Tensor) -> CompressedWeight:
        """Store codes (out, in) in ``0 … 2^bits − 1`` with scale and zero, (1, 1).

        Raises:
            NumericalError: If the scale is not finite in float16.
        """
        return self._stored(
            self.rows_alike.pack(
                codes, scale.expand(self.shape[0], 1), zero.expand(self.shape[0], 1)
            )
        )

    def _stored(self, weight: CompressedWeight) -> CompressedWeight:
        """Return a weight of :attr:`rows_alike` with the sides of its first row alone."""
        sides = {side: weight.tensors[side][:1].clone() for side in ("scale", "zero")}
        return CompressedWeight(self, {"codes": weight.tensors["codes"], **sides})

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return self.rows_alike.to_dense(self.spread(tensors))

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in); the codes stay packed."""
        return self.rows_alike.matmul(self.spread(tensors), inputs)

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Decode rows (n, in) fp32 and no others."""
        return self.rows_alike.rows(self.spread(tensors), index)

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Round to the stored grid."""
        return self.rows_alike.fake_quant(weight, self.spread(tensors))

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the codes of the nearest points of the stored grid."""
        return self._stored(self.rows_alike.store(weight, self.spread(tensors)))

    def grid_leaf(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> GridLeaf:
        """Return the whole matrix; its scale and its zero point stay, which all rows share."""
        leaf = self.rows_alike.grid_leaf(weight, self.spread(tensors))

        def regrid(codes: Tensor, scale: Tensor, zero: Tensor) -> CompressedWeight:
            return self.pack(codes, leaf.scale[:1], leaf.zero[:1])

        return replace(leaf, regrid=regrid, fixed=True)
