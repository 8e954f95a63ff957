"""Low-rank compensation: two small factors beside a compressed weight, for what it lost."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import FactorSpec, LayerSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.methods._joint import combination

FACTOR_BITS = (4, 6, 8)


@dataclass(frozen=True, slots=True)
class LorcSpec(FactorSpec):
    """Low-rank compensation: ``lorc-r16``, ``lorc-p5``, ``lorc-r16-w8`` with 8-bit factors.

    Token: ``lorc-r<rank>[-w<bits>]`` or ``lorc-p<percent of parameters>[-w<bits>]``.

    Args:
        bits: Bits of the factors, on symmetric grids with one scale a row; ``None`` leaves them.
    """

    method: ClassVar[str] = "lorc"
    slot: ClassVar[str] = "residual"

    bits: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        FactorSpec.__post_init__(self)
        if self.bits is not None and self.bits not in FACTOR_BITS:
            raise PlanError(f"lorc: bits must be one of {FACTOR_BITS}, got {self.bits}.")

    def token(self) -> str:
        """Return the canonical token."""
        return FactorSpec.token(self) + ("" if self.bits is None else f"-w{self.bits}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        rank, found, bits = text.partition("-w")
        if found and not bits.isdigit():
            raise PlanError(f"cannot read {text!r}: expected lorc-r<rank>[-w<bits>].")
        spec = super(LorcSpec, cls).parse(rank)
        return replace(spec, bits=int(bits)) if found else spec

    def parts(self) -> LayerSpec:
        """Return what is done to the error: the best factors, rounded or not."""
        factors = "wsvd" + FactorSpec.token(self).removeprefix(self.method)
        rounding = "" if self.bits is None else f"+rtn-w{self.bits}-sym"
        return LayerSpec.parse(factors + rounding)


class Lorc:
    """``W ≈ Ŵ + A B`` with the least ``tr((E − A B) H (E − A B)ᵀ)`` of a rank, ``E = W − Ŵ``.

    That is the whitened SVD of the error (out, in) in place of the plain one of the paper, so it
    corrects outputs. Rounded factors are rounded as a factor and a quantizer together are: B with
    feedback under H, then A after it is refitted to the rounded B.

    Reference:
        Yao et al. 2023, ZeroQuant-V2 (LoRC), https://arxiv.org/abs/2303.08302
    """

    scope: ClassVar[Scope] = "site"
    spec: ClassVar[type[LorcSpec]] = LorcSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "low-rank factors for what the other slots lost"
    reference: ClassVar[str] = "https://arxiv.org/abs/2303.08302"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})
    formats: ClassVar[tuple[str, ...]] = ("factors",)

    def layout(self, spec: LorcSpec, shape: tuple[int, int], dtype: str) -> Any:
        """Return the layout of the factors, from the shape (out, in) alone."""
        parts = spec.parts()
        return combination(parts).layout(parts, shape, dtype)

    def compress(
        self, weight: Tensor, spec: LorcSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return the factors; ``weight`` is the error E (out, in), fp32.

        Raises:
            PlanError: If the Hessian (in, in) is missing.
            NumericalError: If H is not finite.
        """
        parts = spec.parts()
        return combination(parts).compress(weight, parts, stats, dtype)
