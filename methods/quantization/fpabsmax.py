"""Rounding of a linear's input to floating-point numbers: the activation half of W4A8 and W8A8."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Reader, Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.float_input import CODE_OF_BITS, RoundFloatInput


@dataclass(frozen=True, slots=True)
class FpAbsmaxSpec:
    """Round each token that a linear reads to floats: ``fpabsmax-a8`` (E4M3), ``fpabsmax-a4``.

    Token: ``fpabsmax-a<4|8>``.

    Args:
        bits: Bits of a rounded input: 8 (E4M3) or 4 (E2M1).
    """

    method: ClassVar[str] = "fpabsmax"
    slot: ClassVar[str] = "activation"

    bits: int

    def __post_init__(self) -> None:
        """Check the bits."""
        if self.bits not in CODE_OF_BITS:
            raise PlanError(
                f"fpabsmax: bits must be one of {tuple(CODE_OF_BITS)}, got {self.bits}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        return f"fpabsmax-a{self.bits}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"fpabsmax-a(\d+)", text)
        if not found:
            raise PlanError(f"cannot read {text!r}: expected fpabsmax-a8 or fpabsmax-a4.")
        return cls(int(found[1]))


class FpAbsmax:
    """``x̂ = t · nearest(x / t)``, ``t = absmax / 448`` of each token, or ``absmax / 6`` of 4 bits.

    Before a weight of floating-point codes the numbers are multiplied as they are, in 8 bits where
    the tensor cores do, and t multiplies the sums.

    Reference:
        Wu et al. 2023, ZeroQuant-FP, https://arxiv.org/abs/2307.09782
    """

    scope: ClassVar[Scope] = "input"
    spec: ClassVar[type[FpAbsmaxSpec]] = FpAbsmaxSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "round the input of a linear to floats, each token"
    reference: ClassVar[str] = "https://arxiv.org/abs/2307.09782"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def step(self, spec: FpAbsmaxSpec, in_features: int) -> RoundFloatInput:
        """Return the stored step, which holds nothing."""
        return RoundFloatInput(in_features, spec.bits)

    def fit(
        self, readers: Sequence[Reader], spec: FpAbsmaxSpec, stats: Stats | None
    ) -> dict[str, Tensor]:
        """Return nothing: each token has a scale of its own."""
        return {}
