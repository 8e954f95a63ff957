"""Floating-point codes of 4 and 8 bits: E2M1, E4M3, E5M2, a scale a group; MXFP4 and MXFP8.

Decoding is ``w = base · scale · number``. Numbers have at most four significant bits and scales
eleven, so the product is exact in fp32.

Reference:
    Micikevicius et al. 2022, FP8 Formats for Deep Learning, https://arxiv.org/abs/2209.05433
    Rouhani et al. 2023, Microscaling Data Formats, https://arxiv.org/abs/2310.10537
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import CompressedWeight, Format
from autocomp.formats.straight_through import straight_through
from autocomp.formats.uniform import Grid
from autocomp.kernels.bits import packed_bytes
from autocomp.kernels.float_codes import CODES, FloatCode, float_weight, group_steps
from autocomp.kernels.fp4_matmul import fp4_matmul
from autocomp.kernels.fp8_matmul import fp8_matmul

SCALES = ("real", "power", "relative")
"""A float16 number, a power of two, or a power of two times a float16 number of the row."""


@dataclass(frozen=True, slots=True)
class Float(Format):
    """``codes`` and ``scale`` (out, groups), with ``relative`` scales also ``base`` (out, 1).

    ``codes`` are (out, ceil(in/2)) uint8 of E2M1, the first of two in the lower half of a byte;
    (out, in) float8_e4m3fn or float8_e5m2 of the others. ``scale`` is float16 when ``real``, else
    uint8 and means ``2^(scale − 127)`` (E8M0); ``base`` is float16. Powers of groups of 32 are
    MXFP4 and MXFP8.

    Args:
        code: ``e2m1``, ``e4m3`` or ``e5m2``.
        group_size: Consecutive inputs that share a scale; ``None`` is the whole row.
        scales: ``real``, ``power`` or ``relative``.
    """

    name: ClassVar[str] = "float"

    code: str
    group_size: int | None = None
    scales: str = "real"

    def __post_init__(self) -> None:
        """Check shape, code, group size and scales.

        Raises:
            PlanError: If there is no such code or scale, or the group size does not divide the
                inputs.
        """
        Format.__post_init__(self)
        if self.code not in CODES or self.scales not in SCALES:
            raise PlanError(
                f"floating-point codes are {', '.join(CODES)} with scales that are "
                f"{', '.join(SCALES)}, got {self.code!r} with {self.scales!r}."
            )
        self._groups.check(self.shape)

    @property
    def numbers(self) -> FloatCode:
        """Which numbers the codes are."""
        return CODES[self.code]

    @property
    def _groups(self) -> Grid:
        return Grid(self.numbers.bits, self.group_size)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return ``codes``, ``scale`` and, with relative scales, ``base``."""
        rows, columns = self.shape
        packed = packed_bytes(columns, self.numbers.bits)
        dtype = str(self.numbers.dtype).removeprefix("torch.")
        groups = self._groups.groups(columns)
        found = {
            "codes": TensorInfo((rows, packed), dtype),
            "scale": TensorInfo((rows, groups), "float16" if self.scales == "real" else "uint8"),
        }
        if self.scales == "relative":
            found["base"] = TensorInfo((rows, 1), "float16")
        return found

    def pack(self, weight: Tensor, sides: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the nearest numbers of a weight (out, in) fp32, under ``scale`` and ``base``.

        Raises:
            NumericalError: If a scale is not finite in float16.
        """
        if not all(bool(torch.isfinite(side).all()) for side in sides.values()):
            raise NumericalError(
                "a scale is not finite in float16: the weight holds NaN, infinity or values too "
                "large for the codes."
            )
        return CompressedWeight(
            self, {"codes": self.numbers.pack(self._points(weight, sides)), **sides}
        )

    def _points(self, weight: Tensor, sides: Mapping[str, Tensor]) -> Tensor:
        """Return the nearest numbers, (out, in) fp32, before they are scaled."""
        steps = group_steps(sides["scale"], sides.get("base"))[..., None]
        grouped = weight.detach().reshape(*sides["scale"].shape, -1)
        ratio = grouped / torch.where(steps == 0, 1.0, steps)
        return self.numbers.nearest(ratio).view(self.shape)

    def to_dense(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Decode to (out, in) fp32."""
        return float_weight(*self._stored(tensors), self.shape[1])

    def matmul(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Multiply inputs (rows, in); the codes stay packed."""
        return self.product(tensors, inputs, None)

    def product(
        self, tensors: Mapping[str, Tensor], inputs: Tensor, step: Tensor | None
    ) -> Tensor:
        """Return ``t x Ŵᵀ``, (rows, out), for inputs that are numbers of E4M3 if t is given.

        Args:
            tensors: The stored tensors.
            inputs: x (rows, in) of a floating dtype.
            step: t (rows, 1) fp32, or ``None`` for 1 and any inputs.
        """
        multiply = fp4_matmul if self.numbers.bits == 4 else fp8_matmul
        return multiply(inputs, step, *self._stored(tensors))

    def rows(self, tensors: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Decode rows (n, in) fp32 and no others."""
        codes, scale, base = self._stored(tensors)
        rows = None if base is None else base[index]
        return float_weight(codes[index], scale[index], rows, self.shape[1])

    @staticmethod
    def _stored(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return codes, scale and base, as kernels take them."""
        return tensors["codes"], tensors["scale"], tensors.get("base")

    def fake_quant(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Take the nearest numbers under the stored scales."""
        return straight_through(weight, self.store(weight, tensors).to_dense())

    def store(self, weight: Tensor, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Store the nearest numbers under the stored scales."""
        return self.pack(weight, {name: t for name, t in tensors.items() if name != "codes"})
