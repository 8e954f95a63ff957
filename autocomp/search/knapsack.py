"""Multiple-choice knapsack over groups, with sub-blocks that may be bypassed as a whole.

Every group takes exactly one of its options, unless the sub-block that owns it is bypassed:

    minimise   fixed score + Σ_{g active} score[g, o_g] + Σ_{b bypassed} score_b
    subject to fixed + Σ_{g active} cost[g, o_g] + Σ_{b bypassed} cost_b  ≤  budget

The *sweep* minimises ``score + λ·cost`` for many multipliers λ at once; given λ the problem falls
apart into groups, and a sub-block is bypassed when its own penalised cost lies below the sum of
its members' minima. What the multipliers leave over is filled greedily. ``milp`` solves one budget
to a stated gap with HiGHS.

An option whose score is infinite is forbidden.

Reference: Sinha and Zoltners 1979, The Multiple-Choice Knapsack Problem,
https://doi.org/10.1287/opre.27.3.503
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from autocomp.core.errors import InfeasibleError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_CHUNK = 256
_STAGES, _STAGE_POINTS, _FILLED = 4, 24, 4


@dataclass(frozen=True, eq=False)
class Group:
    """Sites that share one decision.

    Args:
        name: The group's name.
        cost: Cost of each option, shape (options,), int64, bytes.
        score: Predicted KL of each option, shape (options,), float64, nats; infinite forbids it.
    """

    name: str
    cost: Ints
    score: Floats


@dataclass(frozen=True)
class Bypass:
    """A sub-block that may be dropped, and the groups that go with it.

    Args:
        name: The sub-block's name.
        members: Indices of the groups inside; every group belongs to at most one sub-block.
        cost: Cost when bypassed, bytes.
        score: Predicted KL of the bypass, nats; infinite forbids it.
    """

    name: str
    members: tuple[int, ...]
    cost: int
    score: float


@dataclass(frozen=True, eq=False)
class Solution:
    """One option a group and one decision a sub-block.

    Args:
        choice: Option index of each group, shape (groups,); 0 for members of a bypassed sub-block.
        bypassed: Whether each sub-block is dropped, shape (bypasses,).
        cost: Total cost, bytes.
        score: Total predicted KL, nats.
    """

    choice: Ints
    bypassed: Bools
    cost: int
    score: float


@dataclass(frozen=True)
class Problem:
    """Groups, sub-blocks and what is paid whatever is chosen.

    Args:
        groups: The groups, in the order of ``Solution.choice``.
        bypasses: The sub-blocks, in the order of ``Solution.bypassed``.
        fixed_cost: Cost of everything that no decision changes, bytes.
        fixed_score: Loss of the model before any decision; as a KL it is 0 for the base, nats.
    """

    groups: tuple[Group, ...]
    bypasses: tuple[Bypass, ...] = ()
    fixed_cost: int = 0
    fixed_score: float = 0.0

    @cached_property
    def cost(self) -> Ints:
        """Cost table, shape (groups, most options), int64, bytes; padded with 0."""
        return self._table("cost", 0).astype(np.int64)

    @cached_property
    def score(self) -> Floats:
        """Score table, shape (groups, most options), float64, nats; padded with infinity."""
        return self._table("score", np.inf)

    def _table(self, field: str, fill: float) -> Floats:
        table = np.full((len(self.groups), max(len(g.cost) for g in self.groups)), fill)
        for row, group in enumerate(self.groups):
            table[row, : len(group.cost)] = getattr(group, field)
        return table

    @cached_property
    def membership(self) -> Floats:
        """1 where a group belongs to a sub-block, shape (groups, bypasses), float64."""
        table = np.zeros((len(self.groups), len(self.bypasses)))
        for column, bypass in enumerate(self.bypasses):
            table[list(bypass.members), column] = 1.0
        return table

    @cached_property
    def bypass_cost(self) -> Ints:
        """Cost of each bypass, shape (bypasses,), int64, bytes."""
        return np.array([bypass.cost for bypass in self.bypasses], dtype=np.int64)

    @cached_property
    def bypass_score(self) -> Floats:
        """Score of each bypass, shape (bypasses,), float64, nats."""
        return np.array([bypass.score for bypass in self.bypasses], dtype=np.float64)

    def active(self, bypassed: Bools) -> Bools:
        """Return which groups are not inside a bypassed sub-block, shape (..., groups)."""
        return np.equal(np.asarray(bypassed, dtype=np.float64) @ self.membership.T, 0)

    def solution(self, choice: Ints, bypassed: Bools) -> Solution:
        """Return the solution of these decisions, priced, with inert choices set to 0."""
        active = self.active(bypassed)
        choice = np.where(active, choice, 0)
        rows = np.flatnonzero(active)
        cost = int(self.cost[rows, choice[rows]].sum() + self.bypass_cost[bypassed].sum())
        score = float(self.score[rows, choice[rows]].sum() + self.bypass_score[bypassed].sum())
        bypassed = np.array(bypassed, dtype=bool)
        return Solution(choice, bypassed, self.fixed_cost + cost, self.fixed_score + score)

    def with_scores(self, score: Floats, bypass_score: Floats) -> "Problem":
        """Return the same problem with other scores, in the shapes of the two tables."""
        groups = tuple(
            replace(group, score=score[row, : len(group.cost)])
            for row, group in enumerate(self.groups)
        )
        bypasses = tuple(
            replace(bypass, score=float(value))
            for bypass, value in zip(self.bypasses, bypass_score, strict=True)
        )
        return replace(self, groups=groups, bypasses=bypasses)


def _minimise(problem: Problem, multipliers: Floats) -> tuple[Ints, Bools, Ints, Floats]:
    """Return choice (L, G), bypassed (L, B), cost (L,) and score (L,) for L multipliers."""
    rows = np.arange(len(problem.groups))
    penalised = problem.score + multipliers[:, None, None] * problem.cost
    choice = penalised.argmin(axis=2)
    least = np.take_along_axis(penalised, choice[:, :, None], axis=2)[:, :, 0]
    dropped = problem.bypass_score + multipliers[:, None] * problem.bypass_cost
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


def smallest(problem: Problem) -> Solution:
    """Return the cheapest allowed solution (the best of equals); it may bypass sub-blocks."""
    rows = np.arange(len(problem.groups))
    cost = np.where(np.isfinite(problem.score), problem.cost, np.iinfo(np.int64).max)
    tied = cost == cost.min(axis=1, keepdims=True)
    choice = np.where(tied, problem.score, np.inf).argmin(axis=1)
    members = problem.cost[rows, choice] @ problem.membership
    bypassed = np.isfinite(problem.bypass_score) & (problem.bypass_cost < members)
    return problem.solution(choice, bypassed)


def largest(problem: Problem) -> Solution:
    """Return the solution with the lowest score, whatever it costs."""
    choice, bypassed, _, _ = _minimise(problem, np.zeros(1))
    return problem.solution(choice[0], bypassed[0])


def sweep(problem: Problem, multipliers: int = 2000) -> list[Solution]:
    """Return the Lagrangian front, by increasing cost and decreasing score.

    Args:
        problem: What to solve.
        multipliers: How many multipliers to try, spread geometrically.
    """
    found = [smallest(problem), largest(problem)]
    for part in np.array_split(
        _geometric(*_slopes(problem), multipliers), -(-multipliers // _CHUNK)
    ):
        choice, bypassed, cost, score = _minimise(problem, part)
        _, first = np.unique(cost, return_index=True)
        found += [Solution(choice[i], bypassed[i], int(cost[i]), float(score[i])) for i in first]
    found.sort(key=lambda solution: (solution.cost, solution.score))
    front: list[Solution] = []
    for solution in found:
        if not front or solution.score < front[-1].score:
            front.append(solution)
    return front


def solve(
    problem: Problem,
    budget: int,
    method: Literal["sweep", "milp"] = "sweep",
    *,
    time_limit_s: float = 20.0,
) -> Solution:
    """Return a good solution within a budget.

    Args:
        problem: What to solve.
        budget: Largest total cost, bytes.
        method: ``sweep`` (milliseconds; within 1 % of the optimum where groups are many) or
            ``milp`` (relative gap 1e-4, or what was found in time).
        time_limit_s: Limit of ``milp``, seconds.

    Raises:
        InfeasibleError: If the budget is below the smallest reachable cost.
    """
    least = smallest(problem)
    if least.cost > budget:
        raise InfeasibleError(
            f"a budget of {budget:,} bytes cannot be met: the smallest reachable size is "
            f"{least.cost:,} bytes. Raise the budget or add smaller options to the space."
        )
    swept = _solve_by_multiplier(problem, budget, least)
    exact = _solve_exactly(problem, budget, time_limit_s) if method == "milp" else None
    return swept if exact is None or exact.score >= swept.score else exact


def _solve_by_multiplier(problem: Problem, budget: int, least: Solution) -> Solution:
    """Bracket the multiplier of the budget in a few stages, then fill the best that fit."""
    low, high = _slopes(problem)
    fitting = {least.cost: least}
    for _ in range(_STAGES):
        points = _geometric(low, high, _STAGE_POINTS)
        choice, bypassed, cost, score = _minimise(problem, points)
        fits = np.flatnonzero(cost <= budget)
        for i in fits[:_FILLED]:
            fitting[int(cost[i])] = Solution(choice[i], bypassed[i], int(cost[i]), float(score[i]))
        i = int(fits[0]) if fits.size else len(points) - 1
        low, high = points[max(i - 1, 0)], points[i]
    best = sorted(fitting.values(), key=lambda solution: solution.score)[:_FILLED]
    return min((fill(problem, one, budget) for one in best), key=lambda solution: solution.score)


def fill(problem: Problem, solution: Solution, budget: int) -> Solution:
    """Spend left-over bytes: again and again the affordable upgrade with the most gain a byte."""
    rows = np.arange(len(problem.groups))
    active = problem.active(solution.bypassed)
    choice, cost = solution.choice.copy(), solution.cost
    while True:
        gain = problem.score[rows, choice][:, None] - problem.score
        step = problem.cost - problem.cost[rows, choice][:, None]
        useful = active[:, None] & (gain > 0) & (step <= budget - cost)
        if not useful.any():
            return problem.solution(choice, solution.bypassed)
        rate = np.where(useful, gain / np.maximum(step, 1), -np.inf)
        group, option = divmod(int(rate.argmax()), rate.shape[1])
        cost += int(step[group, option])
        choice[group] = option


def repair(
    problem: Problem, solution: Solution, budget: int, locked: Sequence[int] = ()
) -> Solution | None:
    """Bring a solution within a budget by the downgrades that lose least a byte, then fill it.

    Args:
        problem: Costs and scores.
        solution: What to repair.
        budget: Largest total cost, bytes.
        locked: Groups that keep their option.

    Returns:
        The repaired solution, or ``None`` when the other groups cannot make up for the excess.
    """
    rows = np.arange(len(problem.groups))
    free = problem.active(solution.bypassed)
    free[list(locked)] = False
    choice, cost = solution.choice.copy(), solution.cost
    while cost > budget:
        saved = problem.cost[rows, choice][:, None] - problem.cost
        loss = problem.score - problem.score[rows, choice][:, None]
        useful = free[:, None] & (saved > 0) & np.isfinite(loss)
        if not useful.any():
            return None
        rate = np.where(useful, loss / np.clip(saved, 1, max(cost - budget, 1)), np.inf)
        group, option = divmod(int(rate.argmin()), rate.shape[1])
        cost -= int(saved[group, option])
        choice[group] = option
    return fill(problem, problem.solution(choice, solution.bypassed), budget)


def _solve_exactly(problem: Problem, budget: int, time_limit_s: float) -> Solution | None:
    """Solve by mixed-integer programming; ``None`` when nothing was found in time."""
    groups, options = problem.score.shape
    bypasses = len(problem.bypasses)
    score = np.concatenate([problem.score.ravel(), problem.bypass_score])
    cost = np.concatenate([problem.cost.ravel(), problem.bypass_cost]).astype(np.float64)
    allowed = np.isfinite(score)
    scale = np.abs(score[allowed]).max(initial=0.0) or 1.0
    columns = np.arange(groups * options)
    rows = columns // options
    inside, owner = np.nonzero(problem.membership)
    one_each = coo_array(
        (
            np.ones(len(rows) + len(inside)),
            (np.concatenate([rows, inside]), np.concatenate([columns, groups * options + owner])),
        ),
        shape=(groups, groups * options + bypasses),
    )
    with _quiet_stdout():
        result = milp(
            np.where(allowed, score / scale, 0.0),
            integrality=np.ones(len(score), dtype=np.int64),
            bounds=Bounds(0, allowed.astype(np.float64)),
            constraints=[
                LinearConstraint(one_each.tocsr(), 1, 1),
                LinearConstraint(
                    cost[None, :] / budget, ub=(budget - problem.fixed_cost) / budget
                ),
            ],
            options={"mip_rel_gap": 1e-4, "time_limit": time_limit_s, "disp": False},
        )
    if result.x is None:
        return None
    taken = np.round(result.x)
    choice = taken[: groups * options].reshape(groups, options).argmax(axis=1)
    found = problem.solution(choice, taken[groups * options :] > 0.5)
    repaired = found if found.cost <= budget else repair(problem, found, budget)
    return None if repaired is None else fill(problem, repaired, budget)


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Send file descriptor 1 to nowhere: HiGHS prints to it whatever its options say."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
