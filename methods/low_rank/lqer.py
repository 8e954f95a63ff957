"""LQER: a low-rank correction whose error counts by the mean magnitudes of the inputs."""

from dataclasses import dataclass
from typing import ClassVar, Self

from autocomp.core.errors import PlanError
from autocomp.core.spec import FactorSpec
from autocomp.core.stats import Needs
from autocomp.methods._residual import ResidualMethod, ResidualSpec

DEFAULT_ALPHA = 100


@dataclass(frozen=True, slots=True)
class LqerSpec(ResidualSpec):
    """Scaled low-rank correction: ``lqer-r32``, ``lqer-r32-w8``, ``lqer-r32-a0`` unscaled.

    Token: ``lqer-<r|p><rank or percent>[-a<percent>][-w<bits>]``.

    Args:
        alpha_percent: The power of the mean magnitudes in percent; 100, which is not written, is
            the paper's L²QER, 0 its LQER, the plain SVD of the error.
    """

    method: ClassVar[str] = "lqer"

    alpha_percent: int = DEFAULT_ALPHA

    def __post_init__(self) -> None:
        """Check the fields."""
        ResidualSpec.__post_init__(self)
        if not 0 <= self.alpha_percent <= 100:
            raise PlanError(f"lqer: α must lie in 0..100 percent, got {self.alpha_percent}.")

    def token(self) -> str:
        """Return the canonical token."""
        default = self.alpha_percent == DEFAULT_ALPHA
        alpha = "" if default else f"-a{self.alpha_percent}"
        return f"{FactorSpec.token(self)}{alpha}{self.rounding}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        return cls(**cls.fields_of(text, r"(?:-a(?P<alpha_percent>\d+))?"))

    @property
    def factor(self) -> str:
        """The activation-aware SVD of the error."""
        rank = FactorSpec.token(self).removeprefix(self.method)
        return f"asvd{rank}-a{self.alpha_percent}"


class Lqer(ResidualMethod):
    """``W ≈ Ŵ + A B`` with ``A B S`` the best of a rank for ``(W − Ŵ) S``, ``S = diag(E|x_j|)``.

    It asks for mean magnitudes alone, where ``lorc`` weighs the error (out, in) by all second
    moments. The paper divides S by the number ``√(min S · max S)``, which changes nothing. Rounded
    factors are rounded to nearest, one by one.

    Reference:
        Zhang et al. 2024, LQER, https://arxiv.org/abs/2402.02446
    """

    spec: ClassVar[type[LqerSpec]] = LqerSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "low-rank factors for the scaled error of the other slots"
    reference: ClassVar[str] = "https://arxiv.org/abs/2402.02446"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.ABSMEAN})
