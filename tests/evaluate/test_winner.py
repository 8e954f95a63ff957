"""The winner's curse, and finalists on text of their own."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core.errors import ConfigError
from autocomp.evaluate.winner import decide, rank_correlation, winners_curse


def test_optimism_of_equal_plans_is_found_to_within_the_bootstrap_bias():
    """Plans with noise of their own and nothing else: the true optimism is known.

    It is the expected minimum of the plans' mean noise. The bootstrap adds noise of the same size
    to means that hold it already, and finds ``1/√2`` of it (0.71) on average.
    """
    rng = np.random.default_rng(0)
    found, true = [], []
    for _ in range(40):
        text = 1 + rng.normal(0, 0.1, (20, 64))
        found.append(winners_curse(text).optimism)
        true.append(1 - text.mean(axis=1).min())
    assert min(found) > 0
    assert np.mean(found) / np.mean(true) == pytest.approx(1 / math.sqrt(2), abs=0.1)


def test_no_optimism_where_one_plan_stands_out():
    rng = np.random.default_rng(0)
    text = np.array([[1.0], [2.0], [3.0]]) + rng.normal(0, 0.1, (3, 64))
    curse = winners_curse(text)
    assert curse.optimism == 0
    assert (curse.tied, curse.compared) == (1, 3)


def test_what_all_plans_share_is_no_optimism():
    """Windows that are hard for all move every mean alike, and no choice."""
    rng = np.random.default_rng(0)
    own = rng.normal(0, 0.01, (5, 64))
    alone, shared = winners_curse(1 + own), winners_curse(1 + own + rng.lognormal(0, 1, 64))
    assert shared.tied == alone.tied
    assert shared.optimism == pytest.approx(alone.optimism)


def test_ties_are_counted_with_the_winner():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (4, 64))
    text = np.array([[1.0], [1.0], [1.0], [2.0]]) + noise - noise.mean(axis=1, keepdims=True)
    text[1] += 1e-6  # far less than the noise
    assert winners_curse(text).tied == 3


def test_the_same_seed_gives_the_same_figure():
    text = np.random.default_rng(0).gamma(4.0, 0.1, (6, 32))
    assert winners_curse(text) == winners_curse(text)
    assert winners_curse(text, seed=1).optimism == pytest.approx(
        winners_curse(text).optimism, rel=0.1
    )


errors = st.lists(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=5
)


@given(errors, st.randoms(use_true_random=False))
def test_task_errors_give_numbers_in_any_order(rows, random):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curse = winners_curse(rows)
        best = decide(dict(enumerate(rows)), dict.fromkeys(range(len(rows)), 1))
    assert 1 <= curse.tied <= curse.compared == len(rows)
    assert 0 <= curse.optimism <= 1
    assert all(math.isfinite(one.comparison.low) for one in best)
    order = list(range(4))
    random.shuffle(order)
    turned = winners_curse([[row[unit] for unit in order] for row in rows])
    assert turned.tied == curse.tied


def test_equal_plans_are_all_tied_without_optimism():
    curse = winners_curse([[0.0, 1.0, 1.0]] * 3)
    assert (curse.tied, curse.compared, curse.optimism) == (3, 3, 0)


def test_finalists_are_ranked_with_ties():
    rng = np.random.default_rng(0)
    shared = rng.lognormal(0, 0.3, 32)
    text = {
        7: 2.0 * shared,
        3: shared,
        5: shared + rng.normal(0.001, 0.05, 32),
    }
    ranking = decide(text, {7: 10, 3: 20, 5: 15})
    assert [one.number for one in ranking] == [3, 5, 7]
    assert [one.comparison.tied for one in ranking] == [True, True, False]
    assert ranking[0].comparison.low == ranking[0].comparison.high == 0
    assert ranking[2].comparison.difference == pytest.approx(shared.mean())
    assert ranking[2].loss == pytest.approx(2 * shared.mean())


def test_equal_losses_rank_by_size_then_number():
    same = [0.1, 0.2]
    ranking = decide({4: same, 2: same, 3: same}, {4: 10, 2: 20, 3: 20})
    assert [one.number for one in ranking] == [4, 2, 3]


@given(st.permutations(range(4)))
def test_the_order_of_the_finalists_is_irrelevant(order):
    text = np.random.default_rng(0).gamma(4.0, 0.1, (4, 8))
    sizes = dict.fromkeys(range(4), 1)
    plain = decide({k: text[k] for k in range(4)}, sizes)
    assert decide({k: text[k] for k in order}, sizes) == plain


@pytest.mark.parametrize("rows", [[], [[]], [[0.1], [0.1, 0.2]]])
def test_other_texts_are_refused(rows):
    with pytest.raises(ConfigError, match="measure all on the"):
        winners_curse(rows)
    with pytest.raises(ConfigError, match="measure all on the"):
        decide(dict(enumerate(rows)), dict.fromkeys(range(len(rows)), 1))


def test_rank_correlation_of_known_orders():
    """Of 4 plans one neighbouring pair is swapped: τ = 1 − 2·1/6, ρ = 1 − 6·2/(4·15)."""
    found = rank_correlation([1, 2, 3, 4], [10, 30, 20, 40])
    assert found.kendall == pytest.approx(1 - 2 / 6)
    assert found.spearman == pytest.approx(1 - 12 / 60)
    assert found.pairs == 4
    backwards = rank_correlation([1, 2, 3], [3, 2, 1])
    assert (backwards.spearman, backwards.kendall) == pytest.approx((-1, -1))


def test_rank_correlation_of_too_little():
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 2, 3], [5, 5, 5]) is None
    with pytest.raises(ConfigError, match="3 searched and 2 finished"):
        rank_correlation([1, 2, 3], [1, 2])
