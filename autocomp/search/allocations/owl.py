"""OWL: blocks with more outliers keep more weights.

The outliers of a block are the entries of all its linears whose Wanda metric
``A_ij = |W_ij| · ‖x_j‖`` exceeds M times the block's mean; ``D`` is their share in percent. With a
spread λ the share of weights that stays is

``t_b − mean(t) + target``, ``t_b = 2λ (D_b − min D) / (max D − min D)``,

so blocks differ by at most 2λ and the mean over weights is the target. Where all ``D`` are equal,
``t = 0``.

Reference: Yin et al. 2023, https://arxiv.org/abs/2310.05175
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from autocomp.core.errors import ConfigError
from autocomp.search.allocations.base import AllocatedSite, Allocation, centred

if TYPE_CHECKING:
    from autocomp.search.scores.base import LinearSite


@dataclass(frozen=True, slots=True)
class Owl(Allocation):
    """Sparsity a block by its share of outliers.

    Token: ``owl[-l<spread>][-m<threshold>]``.

    Args:
        spread: λ; blocks lie at most 2λ apart.
        threshold: M; an outlier is larger than so many times the mean.
    """

    name: ClassVar[str] = "owl"
    slot: ClassVar[str] = "mask"
    summary: ClassVar[str] = "blocks with more outliers in |W|·‖x‖ stay denser"
    reference: ClassVar[str] = "https://arxiv.org/abs/2310.05175"
    letters: ClassVar[Mapping[str, str]] = {"l": "spread", "m": "threshold"}

    spread: float = 0.08
    threshold: float = 5.0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.spread < 0.5 or self.threshold <= 0:
            raise ConfigError(
                f"owl: the spread must lie in [0, 0.5) and the threshold be positive, got "
                f"{self.spread:g} and {self.threshold:g}."
            )

    def read(self, block: "Mapping[str, LinearSite]") -> dict[str, float]:
        """Return the block's share of outliers, percent, for every linear of it."""
        metrics = [site.weight.abs() * site.norms for site in block.values()]
        count = sum(metric.numel() for metric in metrics)
        mean = sum(metric.double().sum().item() for metric in metrics) / count
        above = sum(int((metric > self.threshold * mean).sum().item()) for metric in metrics)
        return dict.fromkeys(block, 100.0 * above / count)

    def profile(self, sites: Sequence[AllocatedSite], target: float) -> dict[str, float]:
        """Return the shares; see the module."""
        outliers = np.array([site.signal for site in sites])
        span = outliers.max() - outliers.min()
        raw = (outliers - outliers.min()) / span if span > 0 else np.zeros(len(sites))
        return centred(2 * self.spread * raw, sites, target)
