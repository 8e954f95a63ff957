"""What residual methods share: factors of the error that the other slots leave, rounded or not."""

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import FactorSpec, LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import CompressedWeight
from autocomp.methods._joint import combination

FACTOR_BITS = (4, 6, 8)


@dataclass(frozen=True, slots=True)
class ResidualSpec(FactorSpec):
    """Two factors of an error, by rank or by the share of the weight's parameters.

    Token: ``<method>-r<rank>[-w<bits>]`` or ``<method>-p<percent of parameters>[-w<bits>]``.

    Args:
        bits: Bits of the factors, on symmetric grids with one scale a row; ``None`` leaves them.
    """

    slot: ClassVar[str] = "residual"

    bits: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        FactorSpec.__post_init__(self)
        if self.bits is not None and self.bits not in FACTOR_BITS:
            raise PlanError(f"{self.method}: bits must be one of {FACTOR_BITS}, got {self.bits}.")

    def token(self) -> str:
        """Return the canonical token."""
        return FactorSpec.token(self) + self.rounding

    @property
    def rounding(self) -> str:
        """How the token ends."""
        return "" if self.bits is None else f"-w{self.bits}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        return cls(**cls.fields_of(text, ""))

    @classmethod
    def fields_of(cls, text: str, more: str) -> dict[str, Any]:
        """Return the fields of a token as text or numbers.

        Args:
            text: The token.
            more: A pattern, with named groups, of what may stand between rank and bits.

        Raises:
            PlanError: If the token does not read so.
        """
        pattern = rf"{cls.method}-(?:r(?P<rank>\d+)|p(?P<keep_percent>\d[\d.]*)){more}"
        found = re.fullmatch(rf"{pattern}(?:-w(?P<bits>\d))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected a token such as {cls.method}-r16, "
                f"{cls.method}-p5 or {cls.method}-r16-w8."
            )
        given = {name: value for name, value in found.groupdict().items() if value is not None}
        return {name: float(v) if name == "keep_percent" else int(v) for name, v in given.items()}

    @property
    @abstractmethod
    def factor(self) -> str:
        """The token of the factorisation that the error is given."""

    def parts(self) -> LayerSpec:
        """Return what is done to the error: the best factors, rounded or not."""
        rounding = "" if self.bits is None else f"+rtn-w{self.bits}-sym"
        return LayerSpec.parse(self.factor + rounding)


class ResidualMethod:
    """What residual methods share: they compress the error as their spec's parts say."""

    scope: ClassVar[Scope] = "site"
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})
    formats: ClassVar[tuple[str, ...]] = ("factors",)

    def layout(self, spec: ResidualSpec, shape: tuple[int, int], dtype: str) -> Any:
        """Return the layout of the factors, from the shape (out, in) alone."""
        parts = spec.parts()
        return combination(parts).layout(parts, shape, dtype)

    def compress(
        self, weight: Tensor, spec: ResidualSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return the factors; ``weight`` is the error E (out, in), fp32.

        Raises:
            PlanError: If a statistic is missing.
            NumericalError: If second moments are not finite.
        """
        parts = spec.parts()
        return combination(parts).compress(weight, parts, stats, dtype)
