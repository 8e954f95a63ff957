"""ASVD's allocation: the rank of every matrix by what factoring it alone would lose.

Every option of every matrix has a sensitivity, the loss of the model in which that matrix alone
is factored so. All (matrix, share, loss) are sorted by loss, worst first; the entries behind a cut
are allowed, every matrix takes the smallest share that it is allowed, or stays whole. The cut lies
as far to the front as the target asks for, and its step is one entry.

The losses are those of the search's score: with ``search.score: measured`` they are measured one
matrix at a time, as published.

Reference: Yuan et al. 2023, https://arxiv.org/abs/2312.05821
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from autocomp.search.allocations.base import AllocatedSite, Allocation

ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Asvd(Allocation):
    """Rank a matrix by a threshold on the loss of factoring it alone. Token: ``asvd``."""

    name: ClassVar[str] = "asvd"
    slot: ClassVar[str] = "factor"
    summary: ClassVar[str] = "the smallest rank whose loss, alone, is below one threshold"
    reference: ClassVar[str] = "https://arxiv.org/abs/2312.05821"

    def profile(self, sites: Sequence[AllocatedSite], target: float) -> dict[str, float]:
        """Return the shares; their mean is the largest that is not above the target.

        Where all entries are allowed and the mean is still above, that is the answer.
        """
        entries = sorted(
            (-loss, share, place)
            for place, site in enumerate(sites)
            for share, loss in site.losses.items()
            if share < 1.0
        )
        total = sum(site.weights for site in sites)

        def shares(cut: int) -> list[float]:
            found = [1.0] * len(sites)
            for _, share, place in entries[cut:]:
                found[place] = min(found[place], share)
            return found

        def mean(cut: int) -> float:
            kept = zip(shares(cut), sites, strict=True)
            return sum(share * site.weights for share, site in kept) / total

        cut = bisect_right(range(len(entries) + 1), target + ROUNDING, key=mean) - 1
        return dict(zip((site.name for site in sites), shares(max(cut, 0)), strict=True))
