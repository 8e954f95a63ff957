"""Grids of floating-point numbers: where they lie, and what quantizers on them share."""

import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Stats
from autocomp.formats.float import Float
from autocomp.kernels.float_codes import (
    CODES,
    LARGEST_EXPONENT,
    FloatCode,
    group_steps,
)
from autocomp.methods._uniform import round_up

SCALES_OF_FLAG = {"": "real", "-m1": "power", "-m2": "relative"}
FLAG_OF_SCALES = {scales: flag for flag, scales in SCALES_OF_FLAG.items()}


@dataclass(frozen=True, slots=True)
class FloatSpec:
    """A grid of floating-point numbers, ``w ≈ scale · number``.

    Token: ``<method>-w<4|8>[g<group>][-e5m2][-m1|-m2]``.

    Args:
        bits: Bits a code: 4 (E2M1) or 8 (E4M3).
        group_size: Consecutive inputs of one row that share a scale; ``None`` is the whole row.
        wide: 8 bits with a wider range and fewer digits, E5M2.
        scales: ``real``: float16; ``power`` (M1): powers of two; ``relative`` (M2): powers of two
            times the largest scale of the row.
    """

    method: ClassVar[str] = ""
    slot: ClassVar[str] = "quantizer"

    bits: int
    group_size: int | None = None
    wide: bool = False
    scales: str = "real"

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.bits not in (4, 8) or (self.wide and self.bits == 4):
            raise PlanError(
                f"{self.method}: bits must be 4 or 8, and E5M2 has 8, got {self.bits}."
            )
        if self.group_size is not None and self.group_size < 1:
            raise PlanError(f"{self.method}: group size must be positive, got {self.group_size}.")
        if self.scales not in FLAG_OF_SCALES:
            raise PlanError(
                f"{self.method}: scales are {', '.join(FLAG_OF_SCALES)}, got {self.scales!r}."
            )

    @property
    def code(self) -> str:
        """The name of the code."""
        return "e2m1" if self.bits == 4 else "e5m2" if self.wide else "e4m3"

    def token(self) -> str:
        """Return the canonical token."""
        group = "" if self.group_size is None else f"g{self.group_size}"
        wide = "-e5m2" if self.wide else ""
        return f"{self.method}-w{self.bits}{group}{wide}{FLAG_OF_SCALES[self.scales]}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(rf"{cls.method}-w(\d+)(?:g(\d+))?(-e5m2)?(-m1|-m2)?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected {cls.method}-w<4|8>[g<group>][-e5m2][-m1|-m2], "
                f"such as {cls.method}-w4g64."
            )
        bits, group, wide, scales = found.groups()
        size = int(group) if group else None
        return cls(int(bits), size, bool(wide), SCALES_OF_FLAG[scales or ""])


class FloatGrid(NamedTuple):
    """A grid for each group of a row, ``w ≈ base · scale · number``.

    Args:
        sides: ``scale`` and perhaps ``base``, as the format stores them.
        numbers: Which numbers.
    """

    sides: dict[str, Tensor]
    numbers: FloatCode

    @classmethod
    def fit(cls, weight: Tensor, spec: FloatSpec) -> Self:
        """Return the grid whose largest number is the largest magnitude of each group, or above.

        ``S = absmax / largest``, 1 where all is 0, and rounded so that nothing is clipped: up to
        float16, to ``2^⌈log₂ S⌉`` (M1), or to ``S_max 2^−⌊log₂(S_max/S)⌋`` with the largest S of
        the row, up to float16 (M2).

        Args:
            weight: (out, in); the group size divides ``in``.
            spec: Code, group size and scales.

        Raises:
            NumericalError: If a scale exceeds the range of float16.
        """
        numbers = CODES[spec.code]
        groups = weight.reshape(len(weight), -1, spec.group_size or weight.shape[1])
        wanted = groups.abs().amax(dim=2) / numbers.largest
        if spec.scales == "relative":
            largest = wanted.amax(dim=1, keepdim=True)
            base = round_up(torch.where(largest == 0, 1.0, largest))
            ratio = wanted / base.to(wanted.dtype)
            return cls({"scale": _power_up(ratio), "base": base}, numbers)
        wanted = torch.where(wanted == 0, 1.0, wanted)
        if spec.scales == "power":
            return cls({"scale": _power_up(wanted)}, numbers)
        return cls({"scale": round_up(wanted)}, numbers)

    @property
    def scale(self) -> Tensor:
        """What the numbers of each group are multiplied by, (out, groups) fp32."""
        return group_steps(self.sides["scale"], self.sides.get("base"))

    @property
    def zero(self) -> Tensor:
        """How far the numbers of each group are shifted, (out, groups) fp32: not at all."""
        return torch.zeros_like(self.scale)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the nearest points of the grid, (out, in)."""
        scale = self.scale[..., None]
        grouped = weight.reshape(len(weight), scale.shape[1], -1)
        return self.numbers.nearest(grouped / scale).mul_(scale).view(weight.shape)


def _power_up(values: Tensor) -> Tensor:
    """Return the least power of two that is at least each number, as ``log₂ + 127``, uint8.

    Of a 0 it is 1. Bytes lie in ``1 … 254``.
    """
    mantissa, exponent = torch.frexp(values)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent) + 127
    exponent = torch.where(values == 0, 127, exponent).clamp_(1, LARGEST_EXPONENT)
    return exponent.to(torch.uint8)


class FloatMethod:
    """What quantizers on floating-point grids share: the layout and the grid."""

    scope: ClassVar[Scope] = "site"
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})
    formats: ClassVar[tuple[str, ...]] = ("float",)

    def layout(self, spec: FloatSpec, shape: tuple[int, int], dtype: str = "") -> Float:
        """Return the layout of a weight (out, in); ``dtype`` plays no part.

        Raises:
            PlanError: If the group size does not divide the inputs.
        """
        return Float(shape, spec.code, spec.group_size, spec.scales)

    def grid(self, weight: Tensor, spec: FloatSpec, stats: Stats | None = None) -> FloatGrid:
        """Return the grid of a weight (out, in); ``stats`` play no part."""
        return FloatGrid.fit(weight, spec)
