"""E-Sparse: a mask by weight times what its input tells and how large it is."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._masks import MaskMethod

BINS = 100


@dataclass(frozen=True, slots=True)
class ESparseSpec(MaskSpec):
    """Keep the largest ``|w| (entropy + α · norm)``: ``esparse-2:4``, ``esparse-2:4-a0.5``.

    Token: ``esparse-s<percent>[-a<alpha>]`` or ``esparse-<keep>:<m>[-a<alpha>]``.

    Args:
        alpha: Weight of the norms, relative to their mean; 1 is not written.
    """

    method: ClassVar[str] = "esparse"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        MaskSpec.__post_init__(self)
        if self.alpha < 0:
            raise PlanError(f"esparse: α must be at least 0, got {self.alpha}.")

    def token(self) -> str:
        """Return the canonical token."""
        return MaskSpec.token(self) + ("" if self.alpha == 1 else f"-a{self.alpha:g}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        plain, option, alpha = text.partition("-a")
        found = super(ESparseSpec, cls).parse(plain)
        if not option:
            return found
        if not re.fullmatch(r"\d+(\.\d+)?", alpha):
            raise PlanError(f"cannot read {text!r}: α is a number, such as esparse-2:4-a0.5.")
        return replace(found, alpha=float(alpha))


class ESparse(MaskMethod):
    """Score ``|W_ij| (e_j + α n_j)``: entropy of an input in nats, and its relative norm.

    ``e_j = −Σ_k p_k log p_k`` over a histogram of the sampled values of input j, 100 bins from its
    least to its largest; ``n_j = ‖x_j‖ / mean ‖x‖``. Weights (out, in) keep their values. Behind
    ``shuffle`` it is the whole method: ``shuffle+esparse-2:4``.

    The paper has no public code and leaves open over which range the bins lie, how many there
    are, and how a norm, whose unit is that of the input, adds to an entropy: hence the mean norm.

    Reference:
        Li et al. 2023, E-Sparse: Boosting the Large Language Model Inference through Entropy-based
        N:M Sparsity, https://arxiv.org/abs/2310.15929
    """

    spec: ClassVar[type[ESparseSpec]] = ESparseSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "keep the largest weight times entropy and norm of its input"
    reference: ClassVar[str] = "https://arxiv.org/abs/2310.15929"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.NORMS, Needs.SAMPLE})

    def score(self, weight: Tensor, spec: ESparseSpec, stats: Stats | None) -> Tensor:
        """Return the score (out, in).

        Raises:
            PlanError: If norms (in,) or sample (n, in) of the input are missing.
        """
        width = weight.shape[1]
        norms = require(stats, "norms", "esparse", width)
        mean = norms.mean()
        size = norms / torch.where(mean == 0, 1.0, mean)
        told = entropy(require(stats, "sample", "esparse", width))
        return weight.abs() * (told + spec.alpha * size)


def entropy(sample: Tensor) -> Tensor:
    """Return the entropy of each column of values (n, in) in ``BINS`` equal bins, (in,), nats."""
    low, high = sample.aminmax(dim=0)
    width = torch.where(high > low, (high - low) / BINS, 1.0)
    bins = ((sample - low) / width).to(torch.int64).clamp_(0, BINS - 1)
    counts = sample.new_zeros((BINS, sample.shape[1]))
    counts.scatter_add_(0, bins, torch.ones_like(sample))
    return torch.special.entr(counts / len(sample)).sum(dim=0)
