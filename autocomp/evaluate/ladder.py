"""The fidelity ladder: the same fixed windows for every candidate, few first, all for the best.

Rungs nest: the first windows of a rung are those of the rung below, spread over the whole text. A
candidate climbs on while the paired interval of its difference to a measured plan that is no
larger leaves a chance that it is no worse on the whole text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autocomp.evaluate.intervals import SpreadPrior, paired

FALSE_STOPS = 0.05
MIN_UNITS = 3


@dataclass(frozen=True, slots=True)
class Ladder:
    """Window counts a rung, smallest first; the last rung is full fidelity."""

    windows: tuple[int, ...]
    length: int

    @classmethod
    def from_tokens(cls, rungs: Sequence[int], length: int, available: int) -> "Ladder":
        """Return the ladder of token counts, rounded up to windows and capped by the text."""
        counts = sorted({min(available, max(1, math.ceil(tokens / length))) for tokens in rungs})
        return cls(tuple(counts), length)

    @property
    def full(self) -> int:
        """Windows of the top rung."""
        return self.windows[-1]


def clearly_worse(
    candidate: Sequence[float],
    rival: Sequence[float],
    *,
    total: int,
    prior: SpreadPrior | None,
) -> bool:
    """Whether the units read so far leave no chance that a candidate is no worse than a rival.

    The candidate stops where the one-sided paired bound ``d̄ − t₀.₉₅ · s/√n · √(1 − n/N)`` of
    :func:`autocomp.evaluate.intervals.paired` is above 0. A candidate that is as good as the rival
    on the whole text is stopped at a rung with a probability of at most 5 %, a better one with
    less. That is over the draw of the windows: since all candidates read the same ones, their
    false stops come together. Over ``k`` rungs below the top it is at most ``k`` times as much.
    Fewer than three units decide nothing without a prior.

    Args:
        candidate: Loss of each unit, in ladder order.
        rival: Loss of at least those units.
        total: Units of the top rung.
        prior: Spread of the study's pairs, once there are fully measured plans.
    """
    if prior is None and len(candidate) < MIN_UNITS:
        return False
    bounds = paired(candidate, rival, total=total, prior=prior, confidence=1 - 2 * FALSE_STOPS)
    return bounds.low > 0
