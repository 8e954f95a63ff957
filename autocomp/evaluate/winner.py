"""What choosing the best of many costs, and how finalists are told apart on text of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, spearmanr

from autocomp.core.errors import ConfigError
from autocomp.evaluate.intervals import Comparison, paired

RESAMPLES = 2000
MIN_PAIRS = 3


@dataclass(frozen=True, slots=True)
class WinnersCurse:
    """How far the best of many measured plans can be believed.

    Args:
        tied: Plans whose paired interval of the difference to the winner holds 0, the winner
            included.
        compared: Plans that were measured to the top rung.
        optimism: By how much the winner's mean loss is too low for having been chosen, in the unit
            of the losses; never negative.
    """

    tied: int
    compared: int
    optimism: float


def winners_curse(losses: Sequence[Sequence[float]], *, seed: int = 0) -> WinnersCurse:
    """State the winner's curse of the plan with the smallest mean loss.

    The units of the search text are a sample of all text, so no finite population is assumed. With
    means ``m*_k`` of plan ``k`` over units redrawn with replacement, ``k*`` the plan that is best
    on them and ``m_k`` the means over the units as measured, the optimism is
    ``E[m_{k*} − m*_{k*}]``. Each draw adds ``m*_0 − m_0`` of the winner, 0 on average, which takes
    out what all plans share and makes every term at least 0.

    Both figures err to the small side: intervals are of single pairs, and the bootstrap redraws
    around means that are spread by chance already, so where all plans are equally good it finds
    about ``1/√2`` of the optimism. Text that the search has not read has none.

    Args:
        losses: Loss of each unit, (plans, units).
        seed: Of the bootstrap.

    Raises:
        ConfigError: If there is no plan or no unit, or the plans have different numbers of units.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 17.
    """
    _check_units([len(row) for row in losses])
    values = np.array(losses, dtype=float)
    means = values.mean(axis=1)
    winner = int(means.argmin())
    tied = sum(paired(row, losses[winner]).tied for row in losses)
    units = values.shape[1]
    shares = np.random.default_rng(seed).multinomial(
        units, np.full(units, 1 / units), size=RESAMPLES
    )
    against = values - values[winner]  # (plans, units); differences of redrawn means from these
    redrawn = shares @ against.T / units
    chosen = redrawn.argmin(axis=1)
    lost = (means - means[winner])[chosen] - redrawn[np.arange(RESAMPLES), chosen]
    return WinnersCurse(tied=tied, compared=len(values), optimism=float(lost.mean()))


@dataclass(frozen=True, slots=True)
class Finalist:
    """One place of a ranking.

    Args:
        number: Trial number.
        loss: Mean over the held-out units.
        comparison: Paired, of this finalist to the first; the first is compared to itself.
    """

    number: int
    loss: float
    comparison: Comparison


def decide(
    losses: Mapping[int, Sequence[float]], sizes: Mapping[int, int]
) -> tuple[Finalist, ...]:
    """Rank finalists on text that no choice has read, and say which the first is tied with.

    The order is that of the mean loss; equal means are ordered by size, then by number. Whoever
    wants the smallest plan that is no worse takes the smallest whose ``comparison.tied``.

    Args:
        losses: Loss of each held-out unit by trial number, the same units for all.
        sizes: Weight bytes by trial number.

    Raises:
        ConfigError: If there is no finalist or no unit, or finalists have different numbers of
            units.
    """
    _check_units([len(row) for row in losses.values()])
    means = {number: float(np.mean(row)) for number, row in losses.items()}
    order = sorted(losses, key=lambda number: (means[number], sizes[number], number))
    first = losses[order[0]]
    return tuple(
        Finalist(number, means[number], paired(losses[number], first)) for number in order
    )


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """How far two orders of the same plans agree: 1 when they are equal, −1 when reversed.

    Args:
        spearman: ρ, Pearson's correlation of the ranks; equal values share their mean rank.
        kendall: τ_b, the share of pairs in the same order less that of pairs in the other one.
        pairs: Plans that have both values.
    """

    spearman: float
    kendall: float
    pairs: int


def rank_correlation(
    searched: Sequence[float], finished: Sequence[float]
) -> RankCorrelation | None:
    """Return how far the order of finished plans agrees with that of the search.

    Args:
        searched: Loss in the search, (plans,).
        finished: Held-out loss of the finished plans, (plans,).

    Returns:
        ``None`` for fewer than three plans, or where one side holds a single value.

    Raises:
        ConfigError: If the two have different lengths.

    Reference: Kendall 1945, https://doi.org/10.1093/biomet/33.3.239 (τ_b).
    """
    if len(searched) != len(finished):
        raise ConfigError(
            f"a rank correlation is of pairs: got {len(searched)} searched and {len(finished)} "
            "finished losses. Give both of every plan."
        )
    if len(searched) < MIN_PAIRS or len(set(searched)) == 1 or len(set(finished)) == 1:
        return None
    return RankCorrelation(
        spearman=float(spearmanr(searched, finished).statistic),
        kendall=float(kendalltau(searched, finished).statistic),
        pairs=len(searched),
    )


def _check_units(counts: Sequence[int]) -> None:
    """Refuse plans that were not all measured on the same units."""
    if not counts or min(counts) == 0 or min(counts) != max(counts):
        raise ConfigError(
            f"cannot compare plans measured on {sorted(set(counts))} units: measure all on the "
            "same text, of at least one unit."
        )
