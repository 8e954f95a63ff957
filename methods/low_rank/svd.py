"""Truncated SVD: the baseline factorisation, without calibration."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.spec import FactorSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._low_rank import FactorMethod, output_basis, project


@dataclass(frozen=True, slots=True)
class SvdSpec(FactorSpec):
    """Truncated SVD: ``svd-r128``, or ``svd-p50`` for half of the parameters."""

    method: ClassVar[str] = "svd"


class Svd(FactorMethod):
    """``W = U S Vᵀ``, ``A = U_k √S_k``, ``B = √S_k V_kᵀ``: the least ``‖W − A B‖_F`` of rank k.

    Reference:
        Eckart and Young 1936, The approximation of one matrix by another of lower rank,
        https://doi.org/10.1007/BF02288367
    """

    spec: ClassVar[type[SvdSpec]] = SvdSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "truncated SVD of the weight, no calibration"
    reference: ClassVar[str] = "https://doi.org/10.1007/BF02288367"
    needs: ClassVar[frozenset[Needs]] = frozenset()

    def factors(self, weight: Tensor, spec: SvdSpec, stats: Stats | None) -> tuple[Tensor, Tensor]:
        """Return A (out, k) and B (k, in), fp32; of ``stats`` only the cache is used."""
        basis = output_basis(weight, stats, whitened=False)
        return project(weight, basis, spec.rank_for((weight.shape[0], weight.shape[1])))
