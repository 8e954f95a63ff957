"""Multiple-choice knapsack over groups, with sub-blocks that may be bypassed as a whole.

Every group takes exactly one of its options, unless the sub-block that owns it is bypassed:

    minimise   fixed score + Σ_{g active} score[g, o_g] + Σ_{b bypassed} score_b
    subject to fixed_r + Σ_{g active} cost_r[g, o_g] + Σ_{b bypassed} cost_{r,b}  ≤  bound_r

for every limited resource r: the problem's own, whose bound is the budget, and any further limits.

The *sweep* minimises ``score + λ·cost`` for many multipliers λ at once; given λ the problem falls
apart into groups, and a sub-block is bypassed when its own penalised cost lies below the sum of
its members' minima. With further limits, the linear relaxation gives a multiplier of each, and
combinations close to them are tried. What the multipliers leave over is filled greedily. ``milp``
solves one budget to a stated gap with HiGHS.

An option whose score is infinite is forbidden.

Reference: Sinha and Zoltners 1979, The Multiple-Choice Knapsack Problem,
https://doi.org/10.1287/opre.27.3.503; Kellerer, Pferschy and Pisinger 2004, Knapsack Problems,
chapters 9 and 11, https://doi.org/10.1007/978-3-540-24777-7 (several constraints).
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

import numpy as np

from autocomp.core.errors import InfeasibleError
from autocomp.search.problem import (
    Bools,
    Bypass,
    Floats,
    Group,
    Ints,
    Limit,
    Problem,
    Solution,
)
from autocomp.search.programs import prices, whole

__all__ = [
    "Bools",
    "Bypass",
    "Floats",
    "Group",
    "Ints",
    "Limit",
    "Problem",
    "Solution",
    "fill",
    "largest",
    "repair",
    "smallest",
    "solve",
    "sweep",
]

_CHUNK = 256
_STAGES, _STAGE_POINTS, _FILLED = 4, 24, 4
_NEAR = (0.9, 0.98, 1.0, 1.02, 1.1, 1.3)
_BUDGETS = 24


def _minimise(problem: Problem, multipliers: Floats) -> tuple[Ints, Bools, Ints, Floats]:
    """Return choice (L, G), bypassed (L, B), cost (L,) and score (L,) for L sets of multipliers.

    Args:
        problem: What to solve.
        multipliers: Shape (L, 1), of the problem's resource alone, or (L, 1 + limits).
    """
    rows = np.arange(len(problem.groups))
    penalised = problem.score + multipliers[:, 0, None, None] * problem.cost
    dropped = problem.bypass_score + multipliers[:, 0, None] * problem.bypass_cost
    for limit, price in zip(problem.limits, multipliers.T[1:], strict=False):
        penalised += price[:, None, None] * limit.cost
        dropped += price[:, None] * limit.bypass_cost
    choice = penalised.argmin(axis=2)
    least = np.take_along_axis(penalised, choice[:, :, None], axis=2)[:, :, 0]
    bypassed = dropped < least @ problem.membership
    active = problem.active(bypassed)
    cost = (problem.cost[rows, choice] * active).sum(1) + bypassed @ problem.bypass_cost
    score = np.where(active, problem.score[rows, choice], 0.0).sum(1)
    score += np.where(bypassed, problem.bypass_score, 0.0).sum(1)
    choice = np.where(active, choice, 0)
    return choice, bypassed, problem.fixed_cost + cost, problem.fixed_score + score


def _slopes(problem: Problem) -> tuple[float, float]:
    """Return bounds of the multipliers at which any decision can change, score a byte."""
    score, cost = problem.score, problem.cost
    allowed = np.isfinite(score)
    pairs = allowed[:, :, None] & allowed[:, None, :]
    finite = np.where(allowed, score, 0.0)
    gain = np.abs(finite[:, :, None] - finite[:, None, :])
    step = np.abs(cost[:, :, None] - cost[:, None, :])
    pairs &= (gain > 0) & (step > 0)
    slopes = gain[pairs] / step[pairs]
    low, high = (slopes.min(), slopes.max()) if slopes.size else (1e-12, 1.0)
    dropping = np.isfinite(problem.bypass_score)
    if dropping.any():
        saved = np.where(allowed, cost, np.iinfo(np.int64).max).min(1) @ problem.membership
        saved = np.maximum(saved - problem.bypass_cost, 1.0)[dropping]
        high = max(high, float((np.abs(problem.bypass_score[dropping]) / saved).max()))
    return float(low) / 2, float(high) * 2


def _geometric(low: float, high: float, count: int) -> Floats:
    return np.geomspace(max(low, 1e-300), max(high, 1e-299), count)


def smallest(problem: Problem, method: Literal["sweep", "milp"] = "sweep") -> Solution:
    """Return the cheapest allowed solution (the best of equals); it may bypass sub-blocks.

    With limits, which make this a knapsack of its own, it is the cheapest found that holds them.

    Args:
        problem: What to solve.
        method: As of :func:`solve`, where there are limits.

    Raises:
        InfeasibleError: If the limits cannot be held together.
    """
    if problem.limits:
        found = solve(problem.least_of(), problem.limits[0].bound, method)
        return problem.solution(found.choice, found.bypassed)
    rows = np.arange(len(problem.groups))
    cost = np.where(np.isfinite(problem.score), problem.cost, np.iinfo(np.int64).max)
    tied = cost == cost.min(axis=1, keepdims=True)
    choice = np.where(tied, problem.score, np.inf).argmin(axis=1)
    members = problem.cost[rows, choice] @ problem.membership
    bypassed = np.isfinite(problem.bypass_score) & (problem.bypass_cost < members)
    return problem.solution(choice, bypassed)


def largest(problem: Problem) -> Solution:
    """Return the solution with the lowest score, whatever it costs, also of what is limited."""
    choice, bypassed, _, _ = _minimise(problem, np.zeros((1, 1)))
    return problem.solution(choice[0], bypassed[0])


def sweep(problem: Problem, multipliers: int = 2000) -> list[Solution]:
    """Return the Lagrangian front within the limits, by increasing cost and decreasing score.

    Args:
        problem: What to solve.
        multipliers: How many multipliers to try, spread geometrically.

    Raises:
        InfeasibleError: If the limits cannot be held together.
    """
    found = [smallest(problem)]
    if problem.limits:
        found += _limited_front(problem, found[0].cost, multipliers)
    else:
        found += [largest(problem), *_front(problem, _geometric(*_slopes(problem), multipliers))]
    found.sort(key=lambda solution: (solution.cost, solution.score))
    front: list[Solution] = []
    for solution in found:
        if not front or solution.score < front[-1].score:
            front.append(solution)
    return front


def _front(
    problem: Problem, multipliers: Floats, prices_of_limits: Floats | None = None
) -> Iterator[Solution]:
    """Yield one solution a cost for many multipliers (L,), at fixed prices (limits,)."""
    others = np.zeros(0) if prices_of_limits is None else prices_of_limits
    for part in np.array_split(multipliers, -(-len(multipliers) // _CHUNK)):
        table = np.column_stack([part, *(np.full(len(part), price) for price in others)])
        choice, bypassed, cost, _ = _minimise(problem, table)
        _, first = np.unique(cost, return_index=True)
        yield from (problem.solution(choice[i], bypassed[i]) for i in first)


def _limited_front(problem: Problem, least: int, multipliers: int) -> Iterator[Solution]:
    """Yield solutions within the limits: those of a few budgets, and of multipliers between."""
    most = max(largest(problem).cost, least)
    slopes = _geometric(*_slopes(problem), max(multipliers // _BUDGETS, 1))
    for budget in np.linspace(least, most, _BUDGETS).astype(np.int64):
        if (filled := _solve_by_prices(problem, int(budget))) is not None:
            yield filled
        if (worth := prices(problem, int(budget))) is not None:
            swept = _front(problem, slopes, worth[1:])
            yield from (solution for solution in swept if problem.holds(solution, most))


def solve(
    problem: Problem,
    budget: int,
    method: Literal["sweep", "milp"] = "sweep",
    *,
    time_limit_s: float = 20.0,
) -> Solution:
    """Return a good solution within a budget and the problem's limits.

    Args:
        problem: What to solve.
        budget: Largest total cost of the problem's resource, in its unit.
        method: ``sweep`` (milliseconds; within 1 % of the optimum where groups are many) or
            ``milp`` (relative gap 1e-4, or what was found in time).
        time_limit_s: Limit of ``milp``, seconds.

    Raises:
        InfeasibleError: If the budget is below the smallest reachable cost, or the limits cannot
            be held together.
    """
    if problem.limits:
        swept = _solve_by_prices(problem, budget)
    else:
        least = smallest(problem)
        _refuse(problem, budget, least)
        swept = _solve_by_multiplier(problem, budget, least)
    if method == "milp" or swept is None:
        exact = _solve_exactly(problem, budget, time_limit_s)
        found = [one for one in (swept, exact) if one is not None]
        swept = min(found, key=lambda solution: solution.score, default=None)
    if swept is None:
        least = smallest(problem, "milp")
        _refuse(problem, budget, least)
        swept = fill(problem, least, budget)
    return swept


def _refuse(problem: Problem, budget: int, least: Solution) -> None:
    """Raise InfeasibleError where the cheapest solution is beyond a budget."""
    if least.cost > budget:
        kept = " and ".join(f"{limit.bound:,} {limit.resource}" for limit in problem.limits)
        within = f" within {kept}" if kept else ""
        raise InfeasibleError(
            f"a limit of {budget:,} {problem.resource} cannot be met{within}: the smallest "
            f"reachable is {least.cost:,}. Raise it or add smaller options to the space."
        )


def _solve_by_multiplier(problem: Problem, budget: int, least: Solution) -> Solution:
    """Bracket the multiplier of the budget in a few stages, then fill the best that fit."""
    low, high = _slopes(problem)
    fitting = {least.cost: least}
    for _ in range(_STAGES):
        points = _geometric(low, high, _STAGE_POINTS)
        choice, bypassed, cost, score = _minimise(problem, points[:, None])
        fits = np.flatnonzero(cost <= budget)
        for i in fits[:_FILLED]:
            fitting[int(cost[i])] = Solution(choice[i], bypassed[i], int(cost[i]), float(score[i]))
        i = int(fits[0]) if fits.size else len(points) - 1
        low, high = points[max(i - 1, 0)], points[i]
    best = sorted(fitting.values(), key=lambda solution: solution.score)[:_FILLED]
    return min((fill(problem, one, budget) for one in best), key=lambda solution: solution.score)


def _solve_by_prices(problem: Problem, budget: int) -> Solution | None:
    """Try multipliers near the relaxation's; fill what holds and repair what does not.

    Returns:
        The best; ``None`` where none could be made to hold, which need not mean that none does.
    """
    worth = prices(problem, budget)
    if worth is None:
        return None
    near = np.array(list(product(_NEAR, repeat=len(worth))))
    choice, bypassed, _, _ = _minimise(problem, np.unique(worth * near, axis=0))
    decisions = np.unique(np.hstack([choice, bypassed]), axis=0)
    groups = len(problem.groups)
    tried = [problem.solution(row[:groups], row[groups:].astype(bool)) for row in decisions]
    tried.sort(key=lambda solution: solution.score)
    holding = [one for one in tried if problem.holds(one, budget)][:_FILLED]
    beyond = [one for one in reversed(tried) if not problem.holds(one, budget)][:_FILLED]
    made = [fill(problem, one, budget) for one in holding]
    made += [one for b in beyond if (one := repair(problem, b, budget)) is not None]
    return min(made, key=lambda solution: solution.score, default=None)


def _solve_exactly(problem: Problem, budget: int, time_limit_s: float) -> Solution | None:
    """Solve by mixed-integer programming; ``None`` when nothing was found in time."""
    decisions = whole(problem, budget, time_limit_s)
    if decisions is None:
        return None
    return repair(problem, problem.solution(*decisions), budget)


class _Ledger:
    """What is spent of every resource while single groups change.

    Args:
        problem: Costs and bounds.
        solution: Where to start.
        budget: Bound of the problem's resource.
    """

    def __init__(self, problem: Problem, solution: Solution, budget: int) -> None:
        self.tables = (problem.cost, *(limit.cost for limit in problem.limits))
        self.choice = solution.choice.copy()
        self.left = [budget - solution.cost]
        self.left += [x.bound - u for x, u in zip(problem.limits, solution.used, strict=True)]
        bounds = (budget, *(limit.bound for limit in problem.limits))
        self.weights = [max(abs(budget), 1) / max(abs(bound), 1) for bound in bounds]
        self.rows = np.arange(len(problem.groups))

    def steps(self) -> list[Ints]:
        """Return how much more of each resource every option takes than the chosen one."""
        return [table - table[self.rows, self.choice][:, None] for table in self.tables]

    def take(self, group: int, option: int) -> None:
        """Change one group."""
        for place, table in enumerate(self.tables):
            self.left[place] -= int(table[group, option] - table[group, self.choice[group]])
        self.choice[group] = option


def fill(problem: Problem, solution: Solution, budget: int) -> Solution:
    """Spend what is left: again and again the affordable upgrade with the most gain a byte.

    Of several resources, what an upgrade takes of each counts by how little of it is left.
    """
    active = problem.active(solution.bypassed)
    ledger = _Ledger(problem, solution, budget)
    while True:
        gain = problem.score[ledger.rows, ledger.choice][:, None] - problem.score
        steps = ledger.steps()
        useful = active[:, None] & (gain > 0)
        for step, left in zip(steps, ledger.left, strict=True):
            useful &= step <= left
        if not useful.any():
            return problem.solution(ledger.choice, solution.bypassed)
        spent = np.maximum(steps[0], 1).astype(np.float64)
        for step, left in zip(steps[1:], ledger.left[1:], strict=True):
            spent += np.maximum(step, 0) * (max(ledger.left[0], 1) / max(left, 1))
        rate = np.where(useful, gain / spent, -np.inf)
        ledger.take(*divmod(int(rate.argmax()), rate.shape[1]))


def repair(
    problem: Problem, solution: Solution, budget: int, locked: Sequence[int] = ()
) -> Solution | None:
    """Bring a solution within its bounds by the changes that lose least a byte, then fill it.

    What counts is the excess over all bounds, each in shares of its bound; every change lowers it.

    Args:
        problem: Costs and scores.
        solution: What to repair.
        budget: Largest total cost of the problem's resource.
        locked: Groups that keep their option.

    Returns:
        The repaired solution, or ``None`` when the other groups cannot make up for the excess.
    """
    free = problem.active(solution.bypassed)
    free[list(locked)] = False
    ledger = _Ledger(problem, solution, budget)
    while min(ledger.left) < 0:
        loss = problem.score - problem.score[ledger.rows, ledger.choice][:, None]
        relief = np.zeros(loss.shape)
        for step, left, weight in zip(ledger.steps(), ledger.left, ledger.weights, strict=True):
            relief += weight * (max(-left, 0) - np.maximum(step - left, 0))
        useful = free[:, None] & (relief > 0) & np.isfinite(loss)
        if not useful.any():
            return None
        rate = np.where(useful, loss / np.where(useful, relief, 1.0), np.inf)
        ledger.take(*divmod(int(rate.argmin()), rate.shape[1]))
    return fill(problem, problem.solution(ledger.choice, solution.bypassed), budget)
