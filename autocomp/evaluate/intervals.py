"""Paired comparisons: two models on the same windows of a text, or the same examples of a task.

All models read the same units in the same order (common random numbers), so what makes a window
hard for both leaves the difference, and a few windows tell apart what their standard errors, taken
alone, do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from autocomp.core.errors import ConfigError

MIN_PLANS = 3


@dataclass(frozen=True, slots=True)
class SpreadPrior:
    """How the losses of two models of one study usually differ from unit to unit.

    The variance of a pair's scaled differences ``u_w = d_w / (m_candidate + m_rival)``, with ``m``
    the magnitudes of the mean losses, is taken as a draw from ``ν₀·s₀² / χ²_{ν₀}``.

    Args:
        variance: ``s₀²``, without a unit.
        degrees_of_freedom: ``ν₀``: how many units the prior is worth. Small where the pairs of the
            study are unlike one another.
    """

    variance: float
    degrees_of_freedom: float

    @classmethod
    def fit(cls, measured: Sequence[Sequence[float]]) -> "SpreadPrior | None":
        """Return the prior that the fully measured plans of a study give, by moments.

        The plans have read the whole text, so the variance ``S²`` of each of their pairs is exact,
        and only its spread over pairs is estimated: ``var(log S²) = ψ′(ν₀/2)`` and
        ``mean(log S²) = log s₀² + log(ν₀/2) − ψ(ν₀/2)``. With ``p`` plans ``ν₀`` is at most ``p``:
        few plans cannot show that all pairs are alike. Equal plans count once, and pairs whose
        losses differ by a constant not at all.

        Args:
            measured: Loss of each unit, one row a plan, all of one length.

        Returns:
            The prior, or ``None`` with fewer than three different plans or two units.

        Raises:
            ConfigError: If the rows have different lengths.

        Reference: Smyth 2004, https://doi.org/10.2202/1544-6115.1027, section 6.2.
        """
        lengths = sorted({len(row) for row in measured})
        if len(lengths) > 1:
            raise ConfigError(
                f"the plans of a prior were measured on {lengths} units; give the losses of plans "
                "that have read the same text to its end."
            )
        if not lengths or lengths[0] < 2:
            return None
        losses = np.unique(np.array(measured, dtype=float), axis=0)
        plans = len(losses)
        if plans < MIN_PLANS:
            return None
        covariance, means = np.cov(losses), np.abs(losses.mean(axis=1))
        one, other = np.triu_indices(plans, 1)
        together = covariance[one, one] + covariance[other, other]
        variances = together - 2 * covariance[one, other]
        varied = variances > 1e-12 * together  # what is left of a constant difference is rounding
        if varied.sum() < MIN_PLANS:
            return None
        logs = np.log(variances[varied]) - 2 * np.log((means[one] + means[other])[varied])
        half = _inverse_trigamma(float(logs.var(ddof=1)), plans / 2)
        centre = logs.mean() + special.digamma(half) - math.log(half)
        return cls(variance=math.exp(centre), degrees_of_freedom=2 * half)


def _inverse_trigamma(value: float, largest: float) -> float:
    """Return the ``x ≤ largest`` with ``ψ′(x) = value``, or ``largest`` where ``x`` is beyond."""
    if special.polygamma(1, largest) >= value:
        return largest
    lowest = 1 / math.sqrt(value)  # ψ′(x) > 1/x²
    return float(optimize.brentq(lambda x: special.polygamma(1, x) - value, lowest, largest))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The mean difference of two models' losses, candidate minus rival, in the unit of the losses.

    Args:
        difference: Mean over the common units.
        standard_error: Of the difference as an estimate for the whole text.
        low: Lower end of the interval.
        high: Upper end of the interval.
        units: Common windows or examples.
        confidence: Share of samples of units whose interval holds the whole text's difference.
        degrees_of_freedom: Of the t quantile.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    units: int
    confidence: float
    degrees_of_freedom: float

    @property
    def tied(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


def paired(
    candidate: Sequence[float],
    rival: Sequence[float],
    *,
    total: int | None = None,
    prior: SpreadPrior | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two models on their common units, the first of each.

    With differences ``d_w`` on ``n`` of ``N`` units the interval is
    ``d̄ ± t · s/√n · √(1 − n/N)``, where ``s²`` is the sample variance with ``n − 1`` degrees of
    freedom, or with a prior ``(ν₀·s₀²·(m_candidate + m_rival)² + (n − 1)·s²) / (ν₀ + n − 1)`` with
    ``ν₀ + n − 1``.

    It assumes that the units are a simple random sample without replacement, from ``total`` units
    or from more than can be counted, and that ``d̄`` is about normal: where a few units carry most
    of the difference the interval is too short (``studies/coverage`` counts how often it holds on
    text). With a prior the confidence is one over the pairs of the study: higher for pairs that
    differ more evenly than most, lower for the others. One unit without a prior gives an infinite
    interval; differences that are all equal give one of no width.

    Args:
        candidate: Loss of each unit, such as nats a token or 0 and 1.
        rival: The same of the other model, in the same order; the longer of the two is cut.
        total: Units of the whole text, for which the interval is meant. ``None``: for all text of
            which the units are a sample.
        prior: Spread of other pairs of the study.
        confidence: Of the two-sided interval.

    Raises:
        ConfigError: If there is no common unit, or there are more than ``total``.

    Reference: Smyth 2004, https://doi.org/10.2202/1544-6115.1027 (moderated t); Cochran 1977,
    Sampling Techniques, section 2.6 (finite population).
    """
    count = min(len(candidate), len(rival))
    if count == 0 or (total is not None and count > total):
        raise ConfigError(
            f"cannot compare {len(candidate)} and {len(rival)} units of {total or 'a text'}: at "
            "least one must be common, and there cannot be more of them than in all."
        )
    mine, theirs = np.asarray(candidate[:count], float), np.asarray(rival[:count], float)
    each = mine - theirs
    difference = float(each.mean())
    squares, freedom = float(np.square(each - difference).sum()), float(count - 1)
    if prior is not None:
        scale = abs(float(mine.mean())) + abs(float(theirs.mean()))
        squares += prior.degrees_of_freedom * prior.variance * scale**2
        freedom += prior.degrees_of_freedom
    unread = 1.0 if total is None else 1 - count / total
    error = math.inf if freedom == 0 else math.sqrt(squares / freedom / count)
    error = error * math.sqrt(unread) if unread else 0.0
    half = error
    if 0 < error < math.inf:
        half = error * float(special.stdtrit(freedom, (1 + confidence) / 2))
    return Comparison(
        difference=difference,
        standard_error=error,
        low=difference - half,
        high=difference + half,
        units=count,
        confidence=confidence,
        degrees_of_freedom=freedom,
    )
