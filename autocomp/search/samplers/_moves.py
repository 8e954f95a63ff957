"""Moves from one measured plan to another: trust-region steps, level switches, crossover."""

import numpy as np

from autocomp.search.knapsack import repair, solve
from autocomp.search.problem import Problem, Solution

BISECTIONS = 24


def changes(problem: Problem, one: Solution, other: Solution) -> int:
    """Return how many groups two solutions treat differently."""
    states = [np.where(problem.active(s.bypassed), s.choice, -1) for s in (one, other)]
    return int((states[0] != states[1]).sum())


def step(problem: Problem, around: Solution, budget: int, size: int) -> Solution:
    """Solve with about ``size`` groups changed from a solution.

    The options of ``around`` get a bonus on their score, bisected until ``size`` groups change.
    """
    rows = np.flatnonzero(problem.active(around.bypassed))
    own = problem.score[rows, around.choice[rows]]
    table = problem.score[rows]
    gaps = np.where(np.isfinite(table), np.abs(table - own[:, None]), 0.0)
    high = 2 * float(gaps.max(initial=0.0)) + 1e-12
    low = high * 1e-8
    best, closest = around, np.inf
    for _ in range(BISECTIONS):
        bonus = float(np.sqrt(low * high))
        score = problem.score.copy()
        score[rows, around.choice[rows]] -= bonus
        bypass_score = problem.bypass_score - bonus * around.bypassed
        found = solve(problem.with_scores(score, bypass_score), budget)
        changed = changes(problem, found, around)
        if changed and abs(changed - size) < closest:
            best, closest = found, abs(changed - size)
        low, high = (bonus, high) if changed > size else (low, bonus)
        if not closest:
            break
    return problem.solution(best.choice, best.bypassed)


def mutant(
    rng: np.random.Generator, problem: Problem, around: Solution, budget: int
) -> Solution | None:
    """Switch one to three groups by one level, or toggle a sub-block, and repair the budget."""
    choice, bypassed = around.choice.copy(), around.bypassed.copy()
    locked: list[int] = []
    if len(bypassed) and rng.random() < 0.15:
        block = int(rng.integers(len(bypassed)))
        bypassed[block] = not bypassed[block]
        members = list(problem.bypasses[block].members)
        if not bypassed[block]:
            choice[members] = np.where(
                np.isfinite(problem.score[members]), problem.cost[members], np.iinfo(np.int64).max
            ).argmin(axis=1)
    active = np.flatnonzero(problem.active(bypassed))
    count = min(int(rng.integers(1, 4)), len(active))
    for group in rng.choice(active, size=count, replace=False):
        order = np.argsort(problem.groups[group].cost, kind="stable")
        place = int(np.flatnonzero(order == choice[group])[0]) + int(rng.choice([-1, 1]))
        if 0 <= place < len(order):
            choice[group] = order[place]
            locked.append(int(group))
    return repair(problem, problem.solution(choice, bypassed), budget, locked)


def crossed(
    rng: np.random.Generator, problem: Problem, one: Solution, other: Solution, budget: int
) -> Solution | None:
    """Take every group from either of two plans, sub-blocks whole, and repair the budget."""
    groups = rng.random(len(one.choice)) < 0.5
    blocks = rng.random(len(one.bypassed)) < 0.5
    for index, bypass in enumerate(problem.bypasses):
        groups[list(bypass.members)] = blocks[index]
    choice = np.where(groups, one.choice, other.choice)
    bypassed = np.where(blocks, one.bypassed, other.bypassed).astype(bool)
    return repair(problem, problem.solution(choice, bypassed), budget)
