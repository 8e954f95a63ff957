"""ASVD: the SVD of a weight whose columns count as much as the inputs they meet are large."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.spec import FactorSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._low_rank import FactorMethod, output_basis, project

DEFAULT_ALPHA = 50
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class AsvdSpec(FactorSpec):
    """Activation-aware SVD: ``asvd-r128``, ``asvd-p50``, ``asvd-p80-a100``.

    Token: ``asvd-r<rank>[-a<percent>]`` or ``asvd-p<percent of parameters kept>[-a<percent>]``.

    Args:
        alpha_percent: The power α of the mean magnitudes in percent: 0 is plain SVD; 50 is not
            written.
    """

    method: ClassVar[str] = "asvd"

    alpha_percent: int = DEFAULT_ALPHA

    def __post_init__(self) -> None:
        """Check the fields."""
        FactorSpec.__post_init__(self)
        if not 0 <= self.alpha_percent <= 100:
            raise PlanError(f"asvd: α must lie in 0..100 percent, got {self.alpha_percent}.")

    def token(self) -> str:
        """Return the canonical token."""
        default = self.alpha_percent == DEFAULT_ALPHA
        return FactorSpec.token(self) + ("" if default else f"-a{self.alpha_percent}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"(asvd-[^-]+)(?:-a(\d+))?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected asvd-r<rank>[-a<α in percent>] or "
                "asvd-p<percent of parameters>[-a<α in percent>], such as asvd-p50."
            )
        spec = super(AsvdSpec, cls).parse(found[1])
        return replace(spec, alpha_percent=int(found[2] or DEFAULT_ALPHA))


class Asvd(FactorMethod):
    """``W S = U Σ Vᵀ``, ``A B = U_k Σ_k V_kᵀ S⁻¹``, ``S = diag(max(E|x_j|^α, 1e-6))``.

    The scales S (in,) stand for the second moments of the input as far as a diagonal can; their
    inverse is folded into B, so nothing is stored beside the factors A (out, k) and B (k, in).
    With α = 0 it is the plain SVD, and where the inputs are uncorrelated ``S = √E[x²]`` would be
    the whitened one. The paper adds 1e-6 to S in place of the lower bound.

    The factors come out of projecting W on U_k, which undoes the scales by itself. The
    decomposition is exact; the published code takes a randomised one of exactly k columns. Ranks
    by the paper's sensitivities are an allocation of the search, ``asvd``.

    Reference:
        Yuan et al. 2023, ASVD, https://arxiv.org/abs/2312.05821
    """

    spec: ClassVar[type[AsvdSpec]] = AsvdSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "SVD of the weight scaled by the mean magnitudes of its inputs"
    reference: ClassVar[str] = "https://arxiv.org/abs/2312.05821"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.ABSMEAN})

    def factors(
        self, weight: Tensor, spec: AsvdSpec, stats: Stats | None
    ) -> tuple[Tensor, Tensor]:
        """Return A (out, k) and B (k, in), fp32.

        Raises:
            PlanError: If the mean magnitudes (in,) are missing.
        """
        absmean = require(stats, "absmean", "asvd", weight.shape[1])
        scale = (absmean ** (spec.alpha_percent / 100)).clamp_min(SMALLEST_SCALE)
        basis = output_basis(weight * scale, stats, whitened=False)
        return project(weight, basis, spec.rank_for((weight.shape[0], weight.shape[1])))
