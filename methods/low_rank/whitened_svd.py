"""Whitened SVD: the factorisation of a rank that is best for the layer's output."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.spec import FactorSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._low_rank import FactorMethod, output_basis, project


@dataclass(frozen=True, slots=True)
class WhitenedSvdSpec(FactorSpec):
    """Output-optimal SVD: ``wsvd-r128``, or ``wsvd-p50`` for half of the parameters."""

    method: ClassVar[str] = "wsvd"


class WhitenedSvd(FactorMethod):
    """``W H^½ = U S Vᵀ``, ``A B = U_k U_kᵀ W``: the least ``tr(D H Dᵀ)``, ``D = W − A B``.

    That is the projection of the outputs on their first k principal directions; the error is the
    sum of the dropped ``S²``.

    Reference:
        Wang et al. 2024, SVD-LLM, https://arxiv.org/abs/2403.07378
    """

    spec: ClassVar[type[WhitenedSvdSpec]] = WhitenedSvdSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the low-rank weight with the least output error"
    reference: ClassVar[str] = "https://arxiv.org/abs/2403.07378"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})

    def factors(
        self, weight: Tensor, spec: WhitenedSvdSpec, stats: Stats | None
    ) -> tuple[Tensor, Tensor]:
        """Return A (out, k) and B (k, in), fp32.

        Raises:
            PlanError: If the Hessian (in, in) is missing.
            NumericalError: If H is not finite.
        """
        require(stats, "hessian", "wsvd", weight.shape[1])
        basis = output_basis(weight, stats, whitened=True)
        return project(weight, basis, spec.rank_for((weight.shape[0], weight.shape[1])))
