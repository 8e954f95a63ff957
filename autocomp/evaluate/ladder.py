"""The fidelity ladder: the same fixed windows for every candidate, few first, all for the best.

Rungs nest: the first windows of a rung are those of the rung below, spread over the whole text. A
candidate stops at a rung when the paired comparison with a measured plan that is no larger says
that it is worse even under the optimistic end of the interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MIN_RATIO = {True: 1.6, False: 1.15}


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


def clearly_worse(candidate: Sequence[float], rival: Sequence[float]) -> bool:
    """Whether a candidate is worse than a rival on common windows beyond doubt.

    The test is one-sided and paired on ``log(KL)`` a window: with differences ``d_w`` over ``n``
    windows the candidate stops when ``mean(d) − t_{0.95,n−1} · sd(d)/√n > 0`` *and* its mean is
    larger by a margin that is wider when there are few windows, because a standard error from two
    windows says little.

    Args:
        candidate: KL of each window, nats a token.
        rival: KL of at least those windows.
    """
    count = min(len(candidate), len(rival))
    mine = np.maximum(np.asarray(candidate[:count]), 1e-9)
    theirs = np.maximum(np.asarray(rival[:count]), 1e-9)
    if mine.mean() < MIN_RATIO[count < 6] * theirs.mean():
        return False
    if count < 3:
        return True
    difference = np.log(mine) - np.log(theirs)
    error = difference.std(ddof=1) / math.sqrt(count)
    return bool(difference.mean() - stats.t.ppf(CONFIDENCE, count - 1) * error > 0)
