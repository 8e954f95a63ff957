"""What proposals are made from: the space, its scores and costs, and the schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Protocol

import numpy as np
from optuna.distributions import IntDistribution

from autocomp.core.errors import InfeasibleError
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.core.variant import PARAMETER
from autocomp.search.allocate import allocated
from autocomp.search.correction import SPREAD, Effects, fit
from autocomp.search.knapsack import Bools, Floats, Ints, Problem, Solution, smallest, solve
from autocomp.search.scores.table import Pairs

QUANTIZED = "quantized"
KIND_OF_SLOT = {
    "structure": "bypassed",
    "factor": "low-rank",
    "mask": "sparse",
    "residual": "corrected",
    "activation": "activations",
    "input": "transformed",
    "cache": "cached",
    "quantizer": QUANTIZED,
}
"""Families of plans by the slot that makes them; a plan of several is ``bypassed+sparse``.

What refines a mask makes none of its own.
"""

PARTS = ("linear", "cache", "ends")
"""What a uniform plan decides once each: linears of the blocks, caches, embedding and head."""

ALLOCATION = "allocation"
"""First part of the origin of a plan that an allocation made."""

FORCED = -1e6
"""A score so low that every solution takes it, nats."""


class Space(Protocol):
    """What proposals need of an option space."""

    @property
    def sketch(self) -> Sketch:
        """The model."""

    @property
    def lists(self) -> Mapping[str, tuple[LayerSpec, ...]]:
        """Options by group name; (keep, bypass) for a sub-block."""

    def distributions(self) -> dict[str, IntDistribution]:
        """Return the range of every parameter, by group name."""

    def encode(self, plan: Plan) -> dict[str, int]:
        """Return the canonical assignment of a plan."""

    def decode(self, params: Mapping[str, int]) -> Plan:
        """Return the plan of an assignment."""


@dataclass(frozen=True)
class Schedule:
    """How the trials are divided.

    Args:
        uniforms: Most uniform baselines that are measured.
        hopeless: Leave out uniform baselines predicted to be this many times worse than the best.
        ladder: Budgets of the ladder, the largest included.
        lowest: Smallest budget of the ladder as a share of the largest.
        at_budget: Share of refinements at the largest budget.
        probe_share: Share of the groups that a probe puts into its family.
        probe_bypass_share: Share of the sub-blocks that the bypass probe drops.
    """

    uniforms: int = 8
    hopeless: float = 8.0
    ladder: int = 4
    lowest: float = 0.5
    at_budget: float = 0.7
    probe_share: float = 0.1
    probe_bypass_share: float = 0.025


@dataclass(frozen=True)
class SearchContext:
    """Everything a proposal depends on besides the seed and the told trials.

    Args:
        space: Option lists, encode and decode.
        problem: Uncorrected scores and upper-bound costs; groups and sub-blocks bear the names of
            the space's lists, options their order.
        classes: Class of each option by group name (``correction.option_class``).
        roles: Role by group and sub-block name (``q_proj``, ``mlp``).
        budget_bytes: Limit of ``exact_bytes`` and of the problem's cost, in the unit of the
            problem's resource: bytes, where the budget is one of bytes.
        exact_bytes: What a plan really takes of the budget; never above its cost in ``problem``.
        family_of: Family of a plan, such as ``bypassed+sparse``.
        schedule: How the trials are divided.
        variant: The variant of the model that this is of: the value of the trials' parameter.
        common: Prior standard deviation of the effect that all options share.
        transfer: What other studies add to the log factor of every option, shape (options,
            parts); ``None`` without them.
        within: Whether a plan holds the budget and every other limit.
        pairs: Second-order terms of the options of each site.
        signals: By allocation to start from, by site, what it read of the model.
    """

    space: Space
    problem: Problem
    classes: Mapping[str, tuple[str, ...]]
    roles: Mapping[str, str]
    budget_bytes: int
    exact_bytes: Callable[[Plan], int]
    family_of: Callable[[Plan], str]
    schedule: Schedule = field(default_factory=Schedule)
    variant: int = 0
    common: float = SPREAD["common"]
    transfer: Floats | None = None
    within: Callable[[Plan], bool] = lambda plan: True
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    signals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def owns(self, params: Mapping[str, int]) -> bool:
        """Return whether parameters are of this variant."""
        return params.get(PARAMETER, 0) == self.variant

    @cached_property
    def effects(self) -> Effects:
        """The effects of the correction."""
        found = Effects.of(self.problem, self.classes, self.roles, self.common)
        return found if self.transfer is None else found.transferred(self.transfer)

    @cached_property
    def uniforms(self) -> tuple[Solution, ...]:
        """Uniform baselines to measure: the best predicted of every option first, then runners-up.

        One option for all decoder linears times one for all caches times one for embedding and
        head; of each the largest embedding that fits the budget and the next smaller one.
        """
        inner, caches, outer = (self.shared_tokens(part) for part in PARTS)
        problem = fit(self.effects, []).apply()
        first, second = [], []
        for token, cache in product(inner, caches):
            fitting = [s for o in outer if (s := self._uniform(problem, (token, cache, o)))]
            fitting.sort(key=lambda solution: -solution.cost)
            first += fitting[:1]
            second += fitting[1:2]
        best = min((s.score for s in first), default=0.0)
        ranked = sorted(first, key=lambda s: s.score) + sorted(second, key=lambda s: s.score)
        worth = [s for s in ranked if s.score <= self.schedule.hopeless * best]
        return tuple(worth[: self.schedule.uniforms])

    def shared_tokens(self, part: str) -> list[str | None]:
        """Return the tokens that all groups of a part offer; ``[None]`` without such a group."""
        names = [g.name for g in self.problem.groups if self.part(g.name) == part]
        offered = [[spec.token() for spec in self.space.lists[name]] for name in names]
        if not offered:
            return [None]
        return [token for token in offered[0] if all(token in other for other in offered)]

    def part(self, name: str) -> str:
        """Return which of ``PARTS`` a group is of."""
        kind = self.space.sketch[name].kind
        return kind if kind in PARTS else "ends"

    def _uniform(self, problem: Problem, chosen: tuple[str | None, ...]) -> Solution | None:
        """Return the solution with one token a part when it fits the budget."""
        token_of = dict(zip(PARTS, chosen, strict=True))
        choice = np.zeros(len(problem.groups), dtype=np.int64)
        for row, group in enumerate(problem.groups):
            tokens = [spec.token() for spec in self.space.lists[group.name]]
            choice[row] = tokens.index(str(token_of[self.part(group.name)]))
        found = problem.solution(choice, np.zeros(len(problem.bypasses), dtype=bool))
        plan = self.space.decode(self.params(found))
        fits = self.exact_bytes(plan) <= self.budget_bytes and self.within(plan)
        return found if fits else None

    @cached_property
    def allocated(self) -> dict[str, Solution]:
        """By allocation, its plan at the budget, where it makes one."""
        found = {token: allocated(self, token) for token in self.signals}
        return {token: solution for token, solution in found.items() if solution is not None}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Families that the space offers."""
        offered = {kind for row in self._group_kinds for kind in row}
        offered |= {"bypassed"} if self.problem.bypasses else set()
        return tuple(kind for kind in reversed(KIND_OF_SLOT.values()) if kind in offered)

    @cached_property
    def _group_kinds(self) -> list[list[str]]:
        return [
            [option_kind(spec) for spec in self.space.lists[group.name]]
            for group in self.problem.groups
        ]

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """The ladder: geometric, from the budget down, reachable without bypasses."""
        kept = self.problem.with_scores(
            self.problem.score, np.full(len(self.problem.bypasses), np.inf)
        )
        try:
            low = max(self.schedule.lowest * self.budget_bytes, 1.1 * smallest(kept).cost)
        except InfeasibleError:  # limits that only bypasses hold
            return (self.budget_bytes,)
        if low >= self.budget_bytes:
            return (self.budget_bytes,)
        steps = np.geomspace(self.budget_bytes, low, self.schedule.ladder)
        return (self.budget_bytes, *(int(value) for value in steps[1:]))

    def params(self, solution: Solution) -> dict[str, int]:
        """Return the canonical parameters of a solution."""
        named = {
            group.name: int(option)
            for group, option in zip(self.problem.groups, solution.choice, strict=True)
        }
        named |= {
            bypass.name: int(flag)
            for bypass, flag in zip(self.problem.bypasses, solution.bypassed, strict=True)
        }
        return self.space.encode(self.space.decode(named))

    def decisions(self, params: Mapping[str, int]) -> tuple[Ints, Bools]:
        """Return choice (groups,) and bypassed (sub-blocks,) of parameters."""
        choice = np.array([params[group.name] for group in self.problem.groups], dtype=np.int64)
        bypassed = np.array([params[b.name] == 1 for b in self.problem.bypasses], dtype=bool)
        return choice, bypassed

    def probe(self, problem: Problem, kind: str, budget: int | None = None) -> Solution | None:
        """Return the best plan that belongs to a family; ``None`` when none fits.

        ``quantized`` may use nothing else. For the others the groups (or sub-blocks) in which the
        family loses least at the going price of a byte are made to use it.

        Args:
            problem: Scores and costs.
            kind: The family.
            budget: In bytes; that of the study when ``None``.
        """
        budget = budget or self.budget_bytes
        price = marginal_price(problem, budget)
        score, bypass_score = problem.score.copy(), problem.bypass_score.copy()
        mine = np.zeros(score.shape, dtype=bool)
        for row, kinds in enumerate(self._group_kinds):
            mine[row, : len(kinds)] = [other == kind for other in kinds]
        penalised = score + price * problem.cost
        least = penalised.min(axis=1)
        if kind == QUANTIZED:
            usable = mine | ~mine.any(axis=1, keepdims=True)
            score[~usable] = np.inf
            bypass_score[:] = np.inf
        elif kind == "bypassed":
            regret = bypass_score + price * problem.bypass_cost - least @ problem.membership
            bypass_score[_least(regret, self.schedule.probe_bypass_share)] = FORCED
        else:
            regret = np.where(mine, penalised, np.inf).min(axis=1) - least
            forced = _least(regret, self.schedule.probe_share)
            score[forced] = np.where(mine[forced], score[forced], np.inf)
            inside = problem.membership[forced].any(axis=0)
            bypass_score[inside] = np.inf
        try:
            return solve(problem.with_scores(score, bypass_score), budget)
        except InfeasibleError:
            return None


def _least(values: Floats, share: float) -> Ints:
    """Return the indices of the smallest finite values, at least one where there is one."""
    count = max(1, round(share * len(values)))
    order = np.argsort(values, kind="stable")[:count]
    return order[np.isfinite(values[order])]


def marginal_price(problem: Problem, budget: int) -> float:
    """Return what a byte is worth at a budget: score lost over the last 3 %, nats a byte."""
    least = smallest(problem)
    less = max(least.cost, int(0.97 * budget))
    if less >= budget:
        return 0.0
    here, there = solve(problem, budget), solve(problem, less)
    return max(0.0, (there.score - here.score) / (budget - less))


def option_kind(spec: LayerSpec) -> str:
    """Return the family of one option: that of its first slot in ``KIND_OF_SLOT``, or dense."""
    found = (kind for slot, kind in KIND_OF_SLOT.items() if getattr(spec, slot) is not None)
    return next(found, "dense")
