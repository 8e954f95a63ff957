"""The knapsack with more than one limited resource, against enumeration."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.core.errors import InfeasibleError
from autocomp.search.knapsack import (
    Bypass,
    Group,
    Limit,
    Problem,
    Solution,
    fill,
    largest,
    repair,
    smallest,
    solve,
    sweep,
)
from autocomp.search.programs import prices

ANY = 10**9


def random_problem(seed: int, groups: int, options: int, bypasses: int, members: int) -> Problem:
    """Weights in two resources that agree by and large, as bytes and milliseconds do."""
    rng = np.random.default_rng(seed)
    made, second = [], []
    for number in range(groups):
        weights = int(rng.choice([1000, 3000, 9000]))
        bits = np.sort(rng.uniform(2, 8, options))
        score = weights * rng.lognormal() * 4.0**-bits * rng.lognormal(0, 0.2, options)
        made.append(Group(f"group{number}", (weights * bits / 8).astype(np.int64), score))
        second.append((made[-1].cost * rng.uniform(0.4, 1.6, options)).astype(np.int64))
    blocks = tuple(
        Bypass(
            f"block{number}",
            tuple(range(number * members, (number + 1) * members)),
            -int(rng.integers(20)),
            float(rng.lognormal(3, 1)),
        )
        for number in range(bypasses)
    )
    limit = Limit("memory", np.stack(second), -rng.integers(30, size=bypasses), 50, ANY)
    return Problem(tuple(made), blocks, fixed_cost=100, limits=(limit,))


def bounded(problem: Problem, *bounds: int) -> Problem:
    limits = zip(problem.limits, bounds, strict=True)
    return replace(problem, limits=tuple(replace(one, bound=bound) for one, bound in limits))


def between(problem: Problem, share: float, other: float) -> tuple[Problem, int]:
    """Return the problem and a budget, each at a share of what lies between two extremes."""
    free = bounded(problem, *(ANY for _ in problem.limits))
    ends = [free.solution(end.choice, end.bypassed) for end in (least(free), largest(free))]
    (low, high), (small, large) = ([e.cost for e in ends], [e.used[0] for e in ends])
    limited = bounded(problem, int(small + other * (large - small)))
    return limited, int(low + share * (high - low))


def least(problem: Problem) -> Solution:
    return smallest(replace(problem, limits=()))


def enumerated(problem: Problem) -> list[Solution]:
    found = []
    for flags in itertools.product((False, True), repeat=len(problem.bypasses)):
        bypassed = np.array(flags, dtype=bool)
        active = problem.active(bypassed)
        ranges = [
            np.flatnonzero(np.isfinite(group.score)) if active[row] else [0]
            for row, group in enumerate(problem.groups)
        ]
        found += [
            problem.solution(np.array(choice), bypassed) for choice in itertools.product(*ranges)
        ]
    return [one for one in found if np.isfinite(one.score)]


def test_a_limit_is_priced_by_hand():
    groups = (
        Group("a", np.array([10, 20]), np.array([4.0, 1.0])),
        Group("b", np.array([10, 30]), np.array([8.0, 2.0])),
    )
    limit = Limit("flops", np.array([[5, 5], [1, 9]]), np.array([-2]), 3, 17)
    problem = Problem(groups, (Bypass("block", (1,), -5, 6.0),), fixed_cost=7, limits=(limit,))
    kept = problem.solution(np.array([1, 1]), np.array([False]))
    assert (kept.cost, kept.score, kept.used) == (57, 3.0, (17,))
    assert problem.holds(kept, 57)
    assert not problem.holds(kept, 56)
    dropped = problem.solution(np.array([1, 1]), np.array([True]))
    assert dropped.used == (3 + 5 - 2,)
    assert solve(problem, 57).score == 3.0
    tight = bounded(problem, 16)
    assert not tight.holds(kept, 57)
    assert solve(tight, 57).score == 7.0  # a at its best; b at 1 flop (9.0) or dropped (7.0)
    assert smallest(tight).cost == 7 + 10 - 5


@pytest.mark.parametrize("method", ["sweep", "milp"])
def test_the_gap_to_enumeration(method):
    """Tiny cases are the hard ones: a left-over of one group is a large part of the whole."""
    ratios = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        shares = rng.uniform(0.1, 0.8), rng.uniform(0.1, 0.8)
        problem, budget = between(random_problem(seed, 6, 3, 2, 2), *shares)
        best = min(one.score for one in enumerated(problem) if problem.holds(one, budget))
        found = solve(problem, budget, method)
        assert problem.holds(found, budget)
        ratios.append(found.score / best)
    assert min(ratios) >= 1 - 1e-12
    if method == "milp":
        assert max(ratios) <= 1 + 1e-3
    else:
        assert np.median(ratios) <= 1 + 1e-9
        assert np.mean(ratios) <= 1.1


def test_a_real_size_is_fast_and_near_the_optimum(capfd):
    made = random_problem(0, groups=210, options=12, bypasses=60, members=3)
    for share, other in ((0.6, 0.4), (0.3, 0.5)):
        problem, budget = between(made, share, other)
        started = time.process_time()
        fast = solve(problem, budget)
        assert time.process_time() - started < 1.0  # 0.02 s on an idle core
        exact = solve(problem, budget, "milp")
        assert problem.holds(fast, budget)
        assert problem.holds(exact, budget)
        assert exact.score * (1 - 1e-4) <= fast.score <= exact.score * 1.005
    assert capfd.readouterr().out == ""


def test_both_resources_have_a_price_where_both_bind():
    made = random_problem(0, groups=60, options=8, bypasses=0, members=0)
    worth = prices(*between(made, 0.4, 0.4))
    assert worth is not None
    assert (worth > 0).all()
    loose = prices(bounded(made, ANY), least(made).cost + 1000)
    assert loose is not None
    assert loose[0] > 0
    assert loose[1] == 0


def test_a_loose_limit_changes_little():
    made = random_problem(1, groups=60, options=8, bypasses=10, members=3)
    free = replace(made, limits=())
    budget = (least(made).cost + largest(made).cost) // 2
    assert solve(bounded(made, ANY), budget).score <= solve(free, budget).score * 1.005


def test_a_front_within_a_limit():
    problem, _ = between(random_problem(2, 30, 6, 4, 3), 0.5, 0.4)
    front = sweep(problem, 480)
    costs, scores = [s.cost for s in front], [s.score for s in front]
    assert costs == sorted(set(costs))
    assert all(one > other for one, other in itertools.pairwise(scores))
    assert all(problem.holds(one, ANY) for one in front)
    for budget in costs[:: len(costs) // 6]:
        best = min(one.score for one in front if one.cost <= budget)
        assert best <= solve(problem, budget, "milp").score * 1.06


def test_three_resources():
    made = random_problem(3, groups=6, options=3, bypasses=1, members=2)
    rng = np.random.default_rng(0)
    third = Limit("flops", rng.integers(1, 50, (6, 3)), np.array([0]), 0, ANY)
    problem = replace(made, limits=(*made.limits, third))
    options = enumerated(problem)
    middle = [int(np.median([row[i] for row in (one.used for one in options)])) for i in (0, 1)]
    problem = bounded(problem, *middle)
    budget = int(np.median([one.cost for one in options]))
    best = min(one.score for one in enumerated(problem) if problem.holds(one, budget))
    assert best <= solve(problem, budget).score <= best * 1.5
    assert solve(problem, budget, "milp").score == pytest.approx(best, rel=1e-3)


def test_limits_that_exclude_each_other_are_refused():
    """Each can be held alone: a is either small or quick."""
    groups = (Group("a", np.array([10, 20]), np.array([2.0, 1.0])),)
    limit = Limit("decode", np.array([[9, 4]]), np.zeros(0, dtype=np.int64), 0, 5)
    problem = Problem(groups, limits=(limit,))
    assert least(problem).cost == 10
    with pytest.raises(InfeasibleError, match=r"15 weight_bytes .* 5 decode: .* reachable is 20"):
        solve(problem, 15)
    with pytest.raises(InfeasibleError, match=r"3 decode cannot be met: the smallest .* is 4"):
        solve(bounded(problem, 3), 15)


def test_repair_and_fill_keep_every_bound():
    made, budget = between(random_problem(4, 12, 5, 2, 3), 0.5, 0.5)
    top = made.solution(np.full(12, 4), np.zeros(2, dtype=bool))
    assert not made.holds(top, budget)
    repaired = repair(made, top, budget, locked=[4, 7])
    assert repaired is not None
    assert made.holds(repaired, budget)
    assert repaired.choice[[4, 7]].tolist() == [4, 4]
    assert repair(made, top, budget, locked=range(12)) is None
    filled = fill(made, smallest(made), budget)
    assert made.holds(filled, budget)
    assert filled.score < smallest(made).score


@st.composite
def problems(draw: st.DrawFn) -> tuple[Problem, int]:
    """Few groups with unrelated costs, forbidden options and bounds around what is possible."""
    groups, options = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    costs = st.lists(st.integers(0, 9), min_size=options, max_size=options)
    scores = st.lists(
        st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0, np.inf]), min_size=options - 1,
        max_size=options - 1,
    )  # fmt: skip
    made = tuple(
        Group(f"g{n}", np.array(draw(costs)), np.array([3.0, *draw(scores)]))
        for n in range(groups)
    )
    blocks, dropped = (), np.zeros(0, dtype=np.int64)
    if groups > 1 and draw(st.booleans()):
        blocks = (
            Bypass("b", (0, 1), draw(st.integers(-3, 0)), draw(st.sampled_from([1.0, 9.0]))),
        )
        dropped = np.array([draw(st.integers(-3, 0))])
    table = np.array([draw(costs) for _ in range(groups)])
    limit = Limit("second", table, dropped, 1, draw(st.integers(0, 20)))
    return Problem(made, blocks, 2, 0.0, "first", (limit,)), draw(st.integers(0, 24))


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(["sweep", "milp"]))
def test_solved_within_bounds_or_refused_with_what_is_reachable(case, method):
    problem, budget = case
    held = [one for one in enumerated(problem) if one.used[0] <= problem.limits[0].bound]
    within = [one for one in held if one.cost <= budget]
    if within:
        found = solve(problem, budget, method)
        assert problem.holds(found, budget)
        assert found.score >= min(one.score for one in within) - 1e-9
        return
    with pytest.raises(InfeasibleError) as refused:
        solve(problem, budget, method)
    smallest_cost = min((one.cost for one in held), default=None)
    smallest_use = min(one.used[0] for one in enumerated(problem))
    if smallest_cost is None:
        assert f"second cannot be met: the smallest reachable is {smallest_use}" in str(
            refused.value
        )
    else:
        assert f"limit of {budget} first" in str(refused.value)
        assert f"reachable is {smallest_cost}." in str(refused.value)
