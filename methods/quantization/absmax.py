"""Absmax rounding of a linear's input: the activation half of W8A8 and W4A4."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Reader, Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats
from autocomp.formats.steps import RoundInput
from autocomp.kernels.quantize_activations import SMALLEST_ABSMAX
from autocomp.methods._hessian import require

ACTIVATION_BITS = (4, 6, 8)


@dataclass(frozen=True, slots=True)
class AbsmaxSpec:
    """Round the input of a linear: ``absmax-a8`` each token, ``absmax-a8-tensor`` one scale.

    Token: ``absmax-a<bits>[-tensor]``.

    Args:
        bits: Bits of a rounded input, one of 4, 6, 8.
        per_tensor: One scale, from the calibration text, in place of one a token.
    """

    method: ClassVar[str] = "absmax"
    slot: ClassVar[str] = "activation"

    bits: int
    per_tensor: bool = False

    def __post_init__(self) -> None:
        """Check the bits."""
        if self.bits not in ACTIVATION_BITS:
            raise PlanError(f"absmax: bits must be one of {ACTIVATION_BITS}, got {self.bits}.")

    def token(self) -> str:
        """Return the canonical token."""
        return f"absmax-a{self.bits}{'-tensor' if self.per_tensor else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"absmax-a(\d+)(-tensor)?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected absmax-a<bits>[-tensor], such as absmax-a8."
            )
        return cls(int(found[1]), bool(found[2]))


class Absmax:
    """``x̂ = s · clamp(round(x / s), ±(2^(b−1) − 1))``, ``s = absmax / (2^(b−1) − 1)``.

    The absmax is that of each token as it comes, or of the calibration text: (1,) fp32, stored.
    One scale for all the tokens of a batch as they come is left out: what a token is rounded to
    would depend on the other tokens of the batch, and so would every measurement.

    Reference:
        Xiao et al. 2022, SmoothQuant (its levels O1 and O3), https://arxiv.org/abs/2211.10438
    """

    scope: ClassVar[Scope] = "input"
    spec: ClassVar[type[AbsmaxSpec]] = AbsmaxSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "round the input of a linear, each token or the whole tensor"
    reference: ClassVar[str] = "https://arxiv.org/abs/2211.10438"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def needs_of(self, spec: AbsmaxSpec) -> frozenset[Needs]:
        """Return what a static scale is made from."""
        return frozenset({Needs.ABSMAX}) if spec.per_tensor else frozenset()

    def step(self, spec: AbsmaxSpec, in_features: int) -> RoundInput:
        """Return the stored step: nothing, or one scale."""
        return RoundInput(in_features, spec.bits, "tensor" if spec.per_tensor else "token")

    def fit(
        self, readers: Sequence[Reader], spec: AbsmaxSpec, stats: Stats | None
    ) -> dict[str, Tensor]:
        """Return ``scale`` (1,) fp32 of a static rounding; the readers play no part.

        Raises:
            PlanError: If the largest magnitudes of the input are missing.
        """
        if not spec.per_tensor:
            return {}
        absmax = require(stats, "absmax", "absmax").max().clamp_min(SMALLEST_ABSMAX)
        return {"scale": (absmax / self.step(spec, 1).largest).reshape(1)}
