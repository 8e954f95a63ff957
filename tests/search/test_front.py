"""The front of measured plans (Hypothesis)."""

import math
from dataclasses import replace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.core.errors import InfeasibleError
from autocomp.search.front import Front, FrontPoint

# Few distinct values, so that ties and equal points are common.
values = st.tuples(st.integers(0, 6), st.integers(1, 6), st.booleans())
points = st.lists(values, max_size=12).map(
    lambda rows: [
        FrontPoint(number, (kl / 4, size * 1000), feasible)
        for number, (kl, size, feasible) in enumerate(rows)
    ]
)


# The same of three objectives: loss, bytes and milliseconds.
triples = st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12).map(
    lambda rows: [FrontPoint(number, row) for number, row in enumerate(rows)]
)


def dominates(one, other):
    no_worse = all(a <= b for a, b in zip(one.values, other.values, strict=True))
    return no_worse and one.values != other.values


@given(points)
def test_front_is_what_no_feasible_point_dominates(found):
    feasible = [point for point in found if point.feasible]
    expected = {p.number for p in feasible if not any(dominates(q, p) for q in feasible)}
    front = Front.from_points(found)
    assert {point.number for point in front.points} == expected
    sizes = [point.cost for point in front.points]
    assert sizes == sorted(sizes)


@given(points, st.randoms())
def test_order_does_not_matter(found, random):
    shuffled = found[:]
    random.shuffle(shuffled)
    assert Front.from_points(shuffled) == Front.from_points(found)


@given(triples)
def test_a_front_of_three_objectives(found):
    expected = {p.number for p in found if not any(dominates(q, p) for q in found)}
    front = Front.from_points(found)
    assert {point.number for point in front.points} == expected
    study = optuna.create_study(directions=["minimize"] * 3)
    study.add_trials([optuna.trial.create_trial(values=list(p.values)) for p in found])
    assert sorted(expected) == sorted(trial.number for trial in study.best_trials)
    if found:
        assert front.knee() in front.points


def test_a_volume_by_hand():
    front = Front.from_points([FrontPoint(0, (1, 1, 2)), FrontPoint(1, (1, 2, 1))])
    assert front.hypervolume((2, 3, 3)) == 2 + 2 - 1


@given(points)
def test_equals_best_trials_of_optuna(found):
    study = optuna.create_study(directions=["minimize", "minimize"])
    for point in found:
        study.add_trial(
            optuna.trial.create_trial(
                values=list(point.values),
                constraints={"limit": 0.0 if point.feasible else 1.0},
            )
        )
    best = sorted(trial.number for trial in study.best_trials)
    assert sorted(p.number for p in Front.from_points(found).points) == best


@given(points, values)
def test_hypervolume_never_falls(found, extra):
    kl, size, feasible = extra
    more = [*found, FrontPoint(99, (kl / 4, size * 1000), feasible)]
    reference = (1.25, 5000)
    before = Front.from_points(found).hypervolume(reference)
    after = Front.from_points(more).hypervolume(reference)
    assert after >= before * (1 - 1e-12)


def test_hypervolume_is_the_dominated_area():
    front = Front.from_points([FrontPoint(0, (1.0, 100)), FrontPoint(1, (0.5, 200))])
    assert front.hypervolume((2.0, 300)) == pytest.approx(1.0 * 200 + 0.5 * 100)
    assert front.hypervolume((0.5, 100)) == 0.0
    assert Front(()).hypervolume((2.0, 300)) == 0.0


def test_knee_is_below_the_chord():
    kl = [2.0, 0.4, 0.2, 0.1, 0.0]
    front = Front.from_points(FrontPoint(i, (k, 100 * (i + 1))) for i, k in enumerate(kl))
    assert front.knee().number == 1


@given(points)
def test_knee_ignores_units(found):
    front = Front.from_points(found)
    if not front.points:
        with pytest.raises(InfeasibleError, match="empty"):
            front.knee()
        return
    scaled = [replace(p, values=(p.loss * 4, p.cost * 1024)) for p in found]
    assert Front.from_points(scaled).knee().number == front.knee().number


@given(points, st.integers(0, 7))
def test_under_is_the_best_that_fits(found, thousands):
    limit = thousands * 1000
    front = Front.from_points(found)
    fitting = [p.loss for p in found if p.feasible and p.cost <= limit]
    if not fitting:
        with pytest.raises(InfeasibleError, match=f"at most {limit}"):
            front.under(limit)
    else:
        assert front.under(limit).loss == min(fitting)
        assert front.under(math.inf).loss == min(p.loss for p in found if p.feasible)
