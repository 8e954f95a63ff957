import itertools
import time

import numpy as np
import pytest

from autocomp.core.errors import InfeasibleError
from autocomp.search.knapsack import (
    Bypass,
    Group,
    Problem,
    Solution,
    fill,
    largest,
    repair,
    smallest,
    solve,
    sweep,
)


def random_problem(
    seed: int, groups: int, options: int, bypasses: int = 0, members: int = 0
) -> Problem:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(groups):
        weights = int(rng.choice([1000, 3000, 9000]))
        bits = np.sort(rng.uniform(2, 8, options))
        score = weights * rng.lognormal() * 4.0**-bits * rng.lognormal(0, 0.2, options)
        made.append(Group(f"group{number}", (weights * bits / 8).astype(np.int64), score))
    blocks = tuple(
        Bypass(
            f"block{number}",
            tuple(range(number * members, (number + 1) * members)),
            0,
            float(rng.lognormal(3, 1)),
        )
        for number in range(bypasses)
    )
    return Problem(tuple(made), blocks, fixed_cost=100)


def brute_force(problem: Problem, budget: int) -> Solution:
    best: Solution | None = None
    for flags in itertools.product((False, True), repeat=len(problem.bypasses)):
        bypassed = np.array(flags, dtype=bool)
        active = problem.active(bypassed)
        ranges = [
            range(len(group.cost)) if active[row] else range(1)
            for row, group in enumerate(problem.groups)
        ]
        for choice in itertools.product(*ranges):
            found = problem.solution(np.array(choice, dtype=np.int64), bypassed)
            if found.cost <= budget and (best is None or found.score < best.score):
                best = found
    assert best is not None
    return best


def test_a_solution_is_priced_by_hand():
    groups = (
        Group("a", np.array([10, 20]), np.array([4.0, 1.0])),
        Group("b", np.array([10, 30]), np.array([8.0, 2.0])),
    )
    problem = Problem(groups, (Bypass("block", (1,), -5, 6.0),), fixed_cost=7)
    kept = problem.solution(np.array([1, 1]), np.array([False]))
    assert (kept.cost, kept.score) == (57, 3.0)
    dropped = problem.solution(np.array([1, 1]), np.array([True]))
    assert (dropped.cost, dropped.score) == (7 + 20 - 5, 7.0)
    assert dropped.choice.tolist() == [1, 0]
    assert smallest(problem).cost == 7 + 10 - 5
    assert largest(problem).score == 3.0
    assert solve(problem, 22).score == 7.0


@pytest.mark.parametrize("seed", range(12))
def test_against_enumeration(seed):
    problem = random_problem(seed, groups=6, options=4, bypasses=1, members=2)
    low, high = smallest(problem).cost, largest(problem).cost
    budget = int(low + (high - low) * np.random.default_rng(seed).uniform(0.1, 0.9))
    best = brute_force(problem, budget)
    exact = solve(problem, budget, "milp")
    fast = solve(problem, budget)
    assert exact.cost <= budget
    assert exact.score <= best.score * (1 + 1e-3)
    assert fast.cost <= budget
    assert fast.score >= best.score * (1 - 1e-12)
    assert problem.solution(fast.choice, fast.bypassed).score == pytest.approx(fast.score)


def test_a_real_size_is_fast_and_near_the_optimum(capfd):
    problem = random_problem(0, groups=210, options=12, bypasses=60, members=3)
    started = time.process_time()
    front = sweep(problem)
    assert time.process_time() - started < 1.5  # 0.04 s on an idle core
    assert len(front) > 100
    costs, scores = [s.cost for s in front], [s.score for s in front]
    assert costs == sorted(set(costs))
    assert all(one > other for one, other in itertools.pairwise(scores))
    for share in (0.2, 0.5):
        budget = int(front[-1].cost * share)
        exact, fast = solve(problem, budget, "milp"), solve(problem, budget)
        assert fast.cost <= budget
        assert fast.score <= exact.score * 1.01
        below = [s for s in front if s.cost <= budget]
        assert fast.score <= below[-1].score * (1 + 1e-9)
    assert capfd.readouterr().out == ""


def test_below_the_smallest_is_refused_with_the_size():
    problem = random_problem(1, groups=5, options=3)
    least = smallest(problem).cost
    assert solve(problem, least).cost == least
    with pytest.raises(InfeasibleError, match=f"{least:,}"):
        solve(problem, least - 1)


@pytest.mark.parametrize("method", ["sweep", "milp"])
def test_infinite_scores_forbid(method):
    problem = random_problem(2, groups=8, options=4, bypasses=2, members=3)
    score = problem.score.copy()
    score[:, 0] = np.inf
    restricted = problem.with_scores(score, np.full(2, np.inf))
    least, most = smallest(restricted).cost, largest(restricted).cost
    for budget in (least, (least + most) // 2):
        found = solve(restricted, budget, method)
        assert found.choice.min() >= 1
        assert not found.bypassed.any()


def test_a_group_of_one_option_and_free_options():
    groups = (
        Group("only", np.array([5]), np.array([1.0])),
        Group("free", np.array([0, 0, 3]), np.array([2.0, 1.0, 0.0])),
    )
    problem = Problem(groups)
    assert smallest(problem).choice.tolist() == [0, 1]
    assert solve(problem, 7).score == 2.0
    assert solve(problem, 8).score == 1.0
    assert [s.cost for s in sweep(problem, 10)] == [5, 8]


def test_repair_keeps_what_is_locked_and_fill_spends_the_rest():
    problem = random_problem(3, groups=12, options=5)
    budget = (smallest(problem).cost + largest(problem).cost) // 2
    top = problem.solution(np.full(12, 4), np.zeros(0, dtype=bool))
    assert top.cost > budget
    repaired = repair(problem, top, budget, locked=[2, 7])
    assert repaired is not None
    assert repaired.cost <= budget
    assert repaired.choice[[2, 7]].tolist() == [4, 4]
    assert repair(problem, top, budget, locked=range(12)) is None
    again = fill(problem, repaired, budget)
    assert again.score == repaired.score
    low = smallest(problem)
    filled = fill(problem, low, budget)
    assert filled.score < low.score
    assert filled.cost <= budget
