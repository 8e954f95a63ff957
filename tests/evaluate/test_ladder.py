"""Rungs nest, and the gate stops only what is clearly worse, at the rate that it states."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.evaluate.intervals import SpreadPrior
from autocomp.evaluate.ladder import FALSE_STOPS, Ladder, clearly_worse

TEXT = 64


def plans(levels, rng, noise=0.08):
    """Return KLs (plans, windows): a window effect that all share, and noise of each plan."""
    shared = rng.lognormal(0, 0.2, TEXT)
    each = shared * rng.lognormal(0, noise, (len(levels), TEXT))
    return np.asarray(levels)[:, None] * each / each.mean(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def prior():
    """What the first few plans of a study give."""
    found = SpreadPrior.fit(plans([0.1, 0.15, 0.3, 0.6], np.random.default_rng(7)))
    assert found is not None
    return found


def test_rungs_are_whole_windows_capped_by_the_text():
    assert Ladder.from_tokens((1000, 4096, 10**6), 512, 20).windows == (2, 8, 20)
    assert Ladder.from_tokens((1024, 1030), 512, 3).windows == (2, 3)


@pytest.mark.parametrize("count", [1, 2, 8, 32])
@pytest.mark.parametrize("informed", [False, True])
def test_false_stops_of_equal_plans_are_as_rare_as_stated(count, informed, prior):
    """Plans of equal KL on the whole text; 2,000 draws have an error of 0.5 %."""
    rng = np.random.default_rng(1)
    stops = 0
    for _ in range(2000):
        text = plans([0.2, 0.2], rng)
        stops += clearly_worse(
            text[0, :count], text[1], total=TEXT, prior=prior if informed else None
        )
    assert stops / 2000 <= FALSE_STOPS + 3 * 0.005


def test_twice_as_bad_is_stopped_after_two_windows(prior):
    rng = np.random.default_rng(2)
    stops = [
        clearly_worse(text[0, :2], text[1], total=TEXT, prior=prior)
        for text in (plans([0.4, 0.2], rng) for _ in range(200))
    ]
    assert np.mean(stops) > 0.95


@pytest.mark.parametrize(("worse", "least"), [(1.2, 0.95), (1.1, 0.5)])
def test_eight_windows_tell_ten_percent_apart(worse, least, prior):
    """A pair's noise is 0.08·√2 of the KL, 4 % over eight windows: 10 % are 2.5 errors."""
    rng = np.random.default_rng(3)
    stops = [
        clearly_worse(text[0, :8], text[1], total=TEXT, prior=prior)
        for text in (plans([0.2 * worse, 0.2], rng) for _ in range(200))
    ]
    assert np.mean(stops) > least


def test_a_better_plan_is_not_stopped(prior):
    rng = np.random.default_rng(4)
    for _ in range(500):
        text = plans([0.15, 0.2], rng)
        assert not clearly_worse(text[0, :2], text[1], total=TEXT, prior=prior)


@pytest.mark.parametrize("count", [1, 2])
def test_without_a_prior_one_or_two_windows_decide_nothing(count):
    assert not clearly_worse([9.0] * count, [0.1] * TEXT, total=TEXT, prior=None)


def test_without_a_prior_more_windows_decide():
    text = plans([0.6, 0.2], np.random.default_rng(5))
    assert clearly_worse(text[0, :8], text[1], total=TEXT, prior=None)


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=8),
    st.floats(1, 10),
)
def test_a_plan_made_worse_is_not_promoted_instead(rows, factor):
    """A multiple of the rival's losses: the larger the multiple, the sooner it stops."""
    prior = SpreadPrior(0.003, 4)
    rival = [row[1] for row in rows]
    for less in (0.8, 1.1, 1.5):
        if clearly_worse([less * x for x in rival], rival, total=9, prior=prior):
            more = [less * factor * x for x in rival]
            assert clearly_worse(more, rival, total=9, prior=prior)


def test_task_errors(prior):
    """Equal answers never stop; erring where the rival never does, stops."""
    right, wrong = [0.0] * 20, [1.0] * 20
    for given_prior in (None, prior):
        assert not clearly_worse(wrong, wrong, total=100, prior=given_prior)
        assert not clearly_worse(right, right, total=100, prior=given_prior)
        assert clearly_worse(wrong, right, total=100, prior=given_prior)
