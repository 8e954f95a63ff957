"""Paired intervals: formulas, laws, and coverage on skewed losses that share their windows."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from autocomp.core.errors import ConfigError
from autocomp.evaluate.intervals import Comparison, SpreadPrior, paired

TEXT = 280

losses = st.floats(1e-3, 10)
pairs = st.lists(st.tuples(losses, losses), min_size=2, max_size=12)
priors = st.builds(SpreadPrior, st.floats(1e-4, 1), st.floats(0.5, 30))


def text_losses(plans: int, seed: int = 0) -> NDArray[np.float64]:
    """Return KLs (plans, windows) like those of real text.

    Windows differ by 20 % for all plans alike, each plan by 10 % on its own; levels spread over a
    factor of e².
    """
    rng = np.random.default_rng(seed)
    level = np.exp(np.linspace(-2, 0, plans))[:, None]
    return level * rng.lognormal(0, 0.2, TEXT) * rng.lognormal(0, 0.1, (plans, TEXT))


def as_tuple(found: Comparison) -> tuple[float, ...]:
    return found.difference, found.standard_error, found.low, found.high


def test_it_is_the_paired_t_interval():
    first, second = text_losses(2)[:, :20]
    found = paired(first, second)
    reference = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-9)
    assert found.units == 20
    assert found.degrees_of_freedom == 19


def test_reading_all_of_a_finite_text_leaves_no_doubt():
    first, second = text_losses(2)
    whole = paired(first, second, total=TEXT)
    assert whole.low == whole.high == whole.difference
    half = paired(first[:140], second, total=TEXT)
    sample = paired(first[:140], second)
    assert half.standard_error == pytest.approx(sample.standard_error * math.sqrt(0.5))


def test_a_prior_is_worth_its_degrees_of_freedom():
    prior = SpreadPrior(variance=0.04, degrees_of_freedom=3)
    one = paired([0.3], [0.1], prior=prior)
    assert one.degrees_of_freedom == 3
    assert one.standard_error == pytest.approx(math.sqrt(0.04) * 0.4)
    three = paired([0.3, 0.5, 0.7], [0.1, 0.2, 0.6], prior=prior)  # differences 0.2, 0.3, 0.1
    variance = (3 * 0.04 * 0.8**2 + 2 * 0.01) / 5
    assert three.standard_error == pytest.approx(math.sqrt(variance / 3))


def test_one_unit_without_a_prior_says_nothing():
    found = paired([1.0], [0.5])
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("candidate", "rival", "total"), [([], [0.1], None), ([0.1, 0.2], [0.1, 0.2], 1)]
)
def test_impossible_counts_are_refused(candidate, rival, total):
    with pytest.raises(ConfigError, match="at least one must be common"):
        paired(candidate, rival, total=total)


@given(rows=pairs, prior=st.none() | priors, factor=st.floats(0.01, 100))
def test_laws(rows, prior, factor):
    """Order of units is irrelevant, swapping the models negates, and units of loss scale."""
    first, second = (list(column) for column in zip(*rows, strict=True))
    found = paired(first, second, prior=prior)
    rounding = 1e-9 * max(first + second)  # differences far below the losses are rounding
    close = {"rel": 1e-6, "abs": rounding}
    turned = paired(first[::-1], second[::-1], prior=prior)
    assert as_tuple(turned) == pytest.approx(as_tuple(found), **close)
    swapped = paired(second, first, prior=prior)
    assert (-swapped.high, -swapped.low) == pytest.approx((found.low, found.high), **close)
    scaled = paired([factor * x for x in first], [factor * x for x in second], prior=prior)
    assert as_tuple(scaled) == pytest.approx(
        [factor * x for x in as_tuple(found)], rel=1e-6, abs=rounding * factor
    )


@given(rows=pairs, prior=st.none() | priors)
def test_more_confidence_and_more_text_widen(rows, prior):
    first, second = zip(*rows, strict=True)
    widths = [
        found.high - found.low
        for found in (
            paired(first, second, total=20, prior=prior, confidence=0.9),
            paired(first, second, total=20, prior=prior),
            paired(first, second, total=200, prior=prior),
            paired(first, second, prior=prior),
        )
    ]
    assert widths == sorted(widths)


@pytest.mark.parametrize("count", [8, 32, 64])
@pytest.mark.parametrize("informed", [False, True])
def test_coverage_is_nominal(count, informed):
    """95 % intervals hold the whole text's difference in 92 to 98 % of samples.

    2,000 samples over 45 pairs; their own error is 0.5 % were they independent.
    """
    text = text_losses(10)
    prior = SpreadPrior.fit(text) if informed else None
    rng = np.random.default_rng(1)
    held = []
    for _ in range(2000):
        one, other = rng.choice(10, 2, replace=False)
        units = rng.choice(TEXT, count, replace=False)
        found = paired(text[one, units], text[other, units], total=TEXT, prior=prior)
        held.append(found.low <= (text[one] - text[other]).mean() <= found.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_prior_finds_what_the_spreads_were_drawn_from():
    """Plans that differ by independent noise of one size: ``s₀`` is that size over the scale."""
    rng = np.random.default_rng(0)
    measured = 1 + rng.normal(0, 0.1, (40, 400))
    prior = SpreadPrior.fit(measured)
    assert prior is not None
    assert math.sqrt(prior.variance) == pytest.approx(0.1 * math.sqrt(2) / 2, rel=0.05)
    assert prior.degrees_of_freedom == 40  # alike, but never surer than there are plans


def test_prior_recovers_its_moments():
    """Each plan's variance is half a draw of ``s₀²·ν₀/χ²``; pairs of plans average two draws."""
    rng = np.random.default_rng(0)
    deviations = np.sqrt(0.01 * 4 / rng.chisquare(4, 60))
    measured = 1 + deviations[:, None] * rng.normal(size=(60, 1000))
    scaled = [
        ((measured[i] - measured[j]) / (measured[i].mean() + measured[j].mean())).var(ddof=1)
        for i in range(60)
        for j in range(i)
    ]
    prior = SpreadPrior.fit(measured)
    assert prior is not None
    half = prior.degrees_of_freedom / 2
    assert special.polygamma(1, half) == pytest.approx(np.log(scaled).var(ddof=1), rel=1e-6)
    expected = math.log(prior.variance) + math.log(half) - special.digamma(half)
    assert expected == pytest.approx(np.log(scaled).mean())


def test_prior_of_unlike_pairs_is_weak():
    rng = np.random.default_rng(0)
    deviations = np.geomspace(1e-4, 0.3, 20)[:, None]
    alike = SpreadPrior.fit(1 + 0.1 * rng.normal(size=(20, 100)))
    unlike = SpreadPrior.fit(1 + deviations * rng.normal(size=(20, 100)))
    assert alike is not None
    assert unlike is not None
    assert unlike.degrees_of_freedom < 2 < alike.degrees_of_freedom


@given(st.permutations(range(5)), st.floats(0.01, 100))
def test_prior_has_no_unit_and_no_order(order, factor):
    text = text_losses(5)[:, :16]
    fitted, other = SpreadPrior.fit(text), SpreadPrior.fit(factor * text[order])
    assert fitted is not None
    assert other is not None
    assert other.variance == pytest.approx(fitted.variance)
    assert other.degrees_of_freedom == pytest.approx(fitted.degrees_of_freedom)


@pytest.mark.parametrize(
    "measured",
    [
        [],
        [[0.1, 0.2], [0.2, 0.1]],
        [[0.1], [0.2], [0.3]],
        [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]],
        [[0.1, 0.2], [0.2, 0.3], [0.3, 0.4]],
    ],
    ids=["none", "two plans", "one unit", "equal plans", "constant differences"],
)
def test_no_prior_without_spread(measured):
    assert SpreadPrior.fit(measured) is None


def test_prior_needs_one_text():
    with pytest.raises(ConfigError, match=r"\[1, 2\] units"):
        SpreadPrior.fit([[0.1], [0.1, 0.2], [0.2, 0.3]])


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3), min_size=3),
    st.booleans(),
)
def test_task_errors_give_numbers(rows, finite):
    """Errors of 0 and 1, equal plans and constant columns give no NaN and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior = SpreadPrior.fit(rows)
        found = paired(rows[0], rows[1], total=3 if finite else None, prior=prior)
    assert prior is None or (0 < prior.variance < math.inf and prior.degrees_of_freedom > 0)
    assert found.low <= found.difference <= found.high
