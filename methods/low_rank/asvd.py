"""ASVD: the SVD of a weight whose columns count as much as the inputs they meet are large."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.spec import FactorSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._low_rank import FactorMethod, output_basis, project

DEFAULT_ALPHA = 50
SMALLEST_SCALE = 1e-6

S = TypeVar("S", bound=Hashable)
O = TypeVar("O", bound=Hashable)  # noqa: E741 (an option)


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

    The decomposition is exact; the published code takes a randomised one of exactly k columns.

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
        basis = scaled_basis(weight, stats, spec.alpha_percent / 100)
        return project(weight, basis, spec.rank_for((weight.shape[0], weight.shape[1])))


def scaled_basis(weight: Tensor, stats: Stats | None, alpha: float) -> Tensor:
    """Return the left singular vectors of ``W S``, (out, min(out, in)) fp64.

    ``U_k U_kᵀ W`` is then ``U_k Σ_k V_kᵀ S⁻¹``: projecting undoes the scales by itself.

    Args:
        weight: W (out, in).
        stats: Statistics with ``absmean`` (in,).
        alpha: The power α of the mean magnitudes.

    Raises:
        PlanError: If the mean magnitudes are missing or those of another width.
    """
    absmean = require(stats, "absmean", "asvd", weight.shape[1])
    scale = (absmean**alpha).clamp_min(SMALLEST_SCALE)
    return output_basis(weight * scale, stats, whitened=False)


# --- allocation by sensitivity


@torch.no_grad()
def truncation_sensitivity(
    weight: Tensor, stats: Stats, specs: Sequence[AsvdSpec]
) -> dict[AsvdSpec, float]:
    """Return the share of a site's output that each truncation loses, from one decomposition.

    ``tr(D H Dᵀ) / tr(W H Wᵀ)`` with ``D = W − A B`` is ``Σ_{i>k} uᵢᵀ C uᵢ / tr C`` with
    ``C = W H Wᵀ`` and the columns of :func:`scaled_basis`, so all ranks cost what one does. It
    stands in for the loss that the paper measures by truncating one layer at a time, which is the
    score ``measured`` of a search; either feeds :func:`allocate`.

    Args:
        weight: W (out, in) fp32.
        stats: Statistics with ``absmean`` (in,) and ``hessian`` (in, in).
        specs: Truncations to compare, all of the same α.

    Returns:
        By spec, a number in 0 … 1; 0 for a weight whose output is zero.

    Raises:
        PlanError: If a statistic is missing, or the specs differ in α.
    """
    alphas = {spec.alpha_percent for spec in specs}
    if len(alphas) != 1:
        raise PlanError(f"one sensitivity is of one α, got the percents {sorted(alphas)}.")
    hessian = require(stats, "hessian", "asvd", weight.shape[1]).double()
    basis = scaled_basis(weight, stats, alphas.pop() / 100)
    inputs = weight.double().T @ basis
    energy = (inputs * (hessian @ inputs)).sum(dim=0).clamp_min(0)
    lost = [*energy.flip(0).cumsum(0).flip(0).tolist(), 0.0]
    shape = (weight.shape[0], weight.shape[1])
    return {spec: lost[spec.rank_for(shape)] / (lost[0] or 1.0) for spec in specs}


def allocate(
    losses: Mapping[S, Mapping[O, float]], sizes: Mapping[S, Mapping[O, int]], target: int
) -> dict[S, O]:
    """Return the option of every site by the paper's sensitivity-based rank search.

    All (site, option) pairs are sorted by loss, and those below a cut are allowed. Every site
    takes its smallest allowed option, or its largest one when none is allowed. The cut is the
    lowest, found by bisection, whose sizes add up to no more than the target.

    Args:
        losses: Loss by site and option, what the site alone costs: perplexity, KL, a share of the
            output. The largest option of a site, such as the dense weight, need not be there.
        sizes: Size by site and option, bytes or parameters.
        target: Largest total size, in the same unit.

    Returns:
        Option by site, in the order of ``sizes``.

    Raises:
        PlanError: If even the smallest options exceed the target.
    """
    pairs = [
        (loss, site, option) for site, found in losses.items() for option, loss in found.items()
    ]
    pairs.sort(key=lambda pair: (pair[0], str(pair[1]), str(pair[2])))
    start = {site: max(options, key=options.__getitem__) for site, options in sizes.items()}

    def chosen(cut: int) -> dict[S, O]:
        found = dict(start)
        for _, site, option in pairs[:cut]:
            if sizes[site][option] < sizes[site][found[site]]:
                found[site] = option
        return found

    def total(cut: int) -> int:
        return sum(sizes[site][option] for site, option in chosen(cut).items())

    low, high = 0, len(pairs)
    if total(high) > target:
        raise PlanError(f"the smallest options take {total(high)}, more than {target}.")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if total(middle) <= target else (middle + 1, high)
    return chosen(low)
