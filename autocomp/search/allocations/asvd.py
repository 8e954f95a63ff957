"""ASVD's allocation: the rank of every matrix by what factoring it alone would lose.

Of every matrix each option has a sensitivity, the loss of the model in which that matrix alone is
factored so. One threshold on it decides: every matrix takes the smallest share whose sensitivity
is below, or stays whole. The threshold is as high as the target asks for, and its step is one
option of one matrix.

The losses are those of the search's score: with ``search.score: measured`` they are measured one
matrix at a time, as published.

Reference: Yuan et al. 2023, https://arxiv.org/abs/2312.05821
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autocomp.search.allocations.base import AllocatedSite, Allocation


@dataclass(frozen=True, slots=True)
class Asvd(Allocation):
    """Rank a matrix by a threshold on the loss of factoring it alone. Token: ``asvd``."""

    name: ClassVar[str] = "asvd"
    slot: ClassVar[str] = "factor"
    summary: ClassVar[str] = "the smallest rank whose loss, alone, is below one threshold"
    reference: ClassVar[str] = "https://arxiv.org/abs/2312.05821"

    def profile(self, sites: Sequence[AllocatedSite], target: float) -> dict[str, float]:
        """Return the shares; their mean is the largest that is not above the target.

        Where the smallest shares of all lie above it, those are the answer.
        """
        weights = {site.name: site.weights for site in sites}
        found = dict.fromkeys(weights, 1.0)
        pairs = sorted(
            (loss, site.name, share)
            for site in sites
            for share, loss in site.losses.items()
            if share < 1.0
        )
        taken, most = sum(weights.values()), round(target * sum(weights.values()))
        for _, name, share in pairs:
            if taken <= most:
                break
            smaller = min(found[name], share)
            taken -= round(found[name] * weights[name]) - round(smaller * weights[name])
            found[name] = smaller
        return found
