"""A multiple-choice knapsack as data: groups, sub-blocks, and what is limited.

One resource is the cost that a front is drawn over; any others are limits that every solution
holds, each with a table of costs in the same shape.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Group:
    """Sites that share one decision.

    Args:
        name: The group's name.
        cost: Cost of each option, shape (options,), int64, in the unit of the problem's resource.
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
        cost: Cost when bypassed, in the unit of the problem's resource.
        score: Predicted KL of the bypass, nats; infinite forbids it.
    """

    name: str
    members: tuple[int, ...]
    cost: int
    score: float


@dataclass(frozen=True, eq=False)
class Limit:
    """A further resource, of which no solution takes more than a bound.

    Args:
        resource: Its name, such as ``peak_memory_bytes``.
        cost: Cost of each option, shape (groups, most options), int64; padded with 0.
        bypass_cost: Cost of each bypass, shape (bypasses,), int64.
        fixed_cost: Cost of everything that no decision changes.
        bound: The most that a solution may cost.
    """

    resource: str
    cost: Ints
    bypass_cost: Ints
    fixed_cost: int
    bound: int


@dataclass(frozen=True, eq=False)
class Solution:
    """One option a group and one decision a sub-block.

    Args:
        choice: Option index of each group, shape (groups,); 0 for members of a bypassed sub-block.
        bypassed: Whether each sub-block is dropped, shape (bypasses,).
        cost: Total cost of the problem's resource, in its unit.
        score: Total predicted KL, nats.
        used: Total cost of each limit's resource.
    """

    choice: Ints
    bypassed: Bools
    cost: int
    score: float
    used: tuple[int, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Groups, sub-blocks and what is paid whatever is chosen.

    Args:
        groups: The groups, in the order of ``Solution.choice``.
        bypasses: The sub-blocks, in the order of ``Solution.bypassed``.
        fixed_cost: Cost of everything that no decision changes, in the unit of the resource.
        fixed_score: Loss of the model before any decision; as a KL it is 0 for the base, nats.
        resource: Name of what ``cost`` counts, such as ``weight_bytes``.
        limits: Further resources that every solution keeps within their bounds.
    """

    groups: tuple[Group, ...]
    bypasses: tuple[Bypass, ...] = ()
    fixed_cost: int = 0
    fixed_score: float = 0.0
    resource: str = "weight_bytes"
    limits: tuple[Limit, ...] = ()

    @cached_property
    def cost(self) -> Ints:
        """Cost table, shape (groups, most options), int64; padded with 0."""
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
        """Cost of each bypass, shape (bypasses,), int64."""
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
        taken, bypassed = choice[rows], np.array(bypassed, dtype=bool)
        cost = int(self.cost[rows, taken].sum() + self.bypass_cost[bypassed].sum())
        score = float(self.score[rows, taken].sum() + self.bypass_score[bypassed].sum())
        used = tuple(
            limit.fixed_cost
            + int(limit.cost[rows, taken].sum() + limit.bypass_cost[bypassed].sum())
            for limit in self.limits
        )
        return Solution(choice, bypassed, self.fixed_cost + cost, self.fixed_score + score, used)

    def holds(self, solution: Solution, budget: int) -> bool:
        """Return whether a solution of this problem keeps a budget and every limit."""
        kept = (u <= limit.bound for u, limit in zip(solution.used, self.limits, strict=True))
        return solution.cost <= budget and all(kept)

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

    def least_of(self) -> "Problem":
        """Return the problem whose score is this one's cost and whose cost is the first limit's.

        Its solutions within that limit's bound are the cheapest that hold all limits.
        """
        first, *rest = self.limits
        groups = tuple(
            Group(
                group.name,
                first.cost[row, : len(group.cost)],
                np.where(np.isfinite(group.score), group.cost, np.inf),
            )
            for row, group in enumerate(self.groups)
        )
        bypasses = tuple(
            Bypass(
                bypass.name,
                bypass.members,
                int(cost),
                float(bypass.cost) if np.isfinite(bypass.score) else np.inf,
            )
            for bypass, cost in zip(self.bypasses, first.bypass_cost, strict=True)
        )
        return Problem(
            groups,
            bypasses,
            first.fixed_cost,
            float(self.fixed_cost),
            first.resource,
            tuple(rest),
        )
