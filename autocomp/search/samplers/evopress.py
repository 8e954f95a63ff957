"""EvoPress as published: an evolution at one budget, by the measured loss alone.

A baseline that knows no score. It starts from the largest uniform level, with random sites a level
up where that leaves bytes, and keeps one parent. A generation makes ``λ`` offspring, each by
``min(a, b)`` *level switches*, ``a, b ∈ {1, 2, 3}``: of two random sites of equal cost one goes up
a level and one goes down, so that the budget is kept exactly. Offspring are selected in stages,
few survivors on ever more text, drawn anew each generation; the parent takes part in the last
stage.

Levels are the options of a site by bytes. The text is the oracle's pool, which no trial is
measured on; a trial is the parent after some generations. Sub-blocks are kept, and what does not
share its costs with other sites stays at the largest option that leaves the budget a solution.

The published setting for bit-widths is 128 offspring on 2,048 tokens, 16 survivors on 16,384, 4
and the parent on 131,072: 1.2 million tokens a generation. The default keeps the survivors and
the growth of the text, at a twelfth of the tokens.

Reference: Sieberling, Kuznedelev, Kurtic, Alistarh 2024, https://arxiv.org/abs/2410.14649.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocomp.core.errors import ConfigError
from autocomp.search.ask import Ask, Oracle, Proposal, Told
from autocomp.search.context import SearchContext
from autocomp.search.knapsack import smallest
from autocomp.search.problem import Ints, Problem

ORIGIN = "evolution"
TRIES = 100
FRUITLESS = 20


@dataclass(frozen=True)
class EvoPress:
    """Level-switch evolution by the measured loss alone, as published (a baseline).

    Args:
        offspring: Plans made a generation.
        survivors: Plans that are left after each stage.
        units: Units of text that a stage reads a plan.
        initial: Plans of which the best, on the text of the second stage, is the first parent.
        generations: Fewest generations a trial.
    """

    offspring: int = 64
    survivors: tuple[int, ...] = (16, 4, 1)
    units: tuple[int, ...] = (1, 4, 16)
    initial: int = 16
    generations: int = 2

    def __call__(self, ask: Ask) -> Proposal | None:
        """Return the parent after some more generations; see :data:`~autocomp.search.ask.Sampler`.

        Raises:
            ConfigError: If there is no text to select on.
            InfeasibleError: If the budget is below the smallest reachable size.
        """
        if ask.oracle.pool < max(self.units):
            raise ConfigError(
                f"the sampler evopress selects on {max(self.units)} windows of text of its own, "
                f"and {ask.oracle.pool} are there. Raise data.rungs, or choose another sampler."
            )
        context = ask.contexts[0]
        race = _Race(context, ask.oracle, ask.seed.child("trial", ask.index).numpy())
        parents = [trial for trial in ask.told if trial.origin == ORIGIN]
        known = [context.decisions(trial.params)[0].tolist() for trial in ask.told]
        parent = self._parent(race, context, parents)
        for generation in range(1, FRUITLESS + 1):
            parent = self._generation(race, parent)
            if generation >= self.generations and parent.tolist() not in known:
                return _proposal(ask.index, context, race, parent, generation)
        return None

    def _parent(self, race: "_Race", context: SearchContext, told: Sequence[Told]) -> Ints:
        if told:
            return context.decisions(told[-1].params)[0]
        plans = [race.random() for _ in range(self.initial)]
        return race.select(plans, self.units[1], 1)[0]

    def _generation(self, race: "_Race", parent: Ints) -> Ints:
        plans = race.offspring(parent, self.offspring)
        for survivors, units in zip(self.survivors, self.units, strict=True):
            plans = [*plans, parent] if survivors == 1 else plans
            plans = race.select(plans, units, survivors)
        return plans[0]


class _Race:
    """Plans of one context, as levels a group, and their losses on random text."""

    def __init__(self, context: SearchContext, oracle: Oracle, rng: np.random.Generator) -> None:
        self._context, self._oracle, self._rng = context, oracle, rng
        problem = self.problem = context.problem
        kept = np.zeros(len(problem.bypasses), dtype=bool)
        self._order = [np.argsort(group.cost, kind="stable") for group in problem.groups]
        alike: dict[tuple[int, ...], list[int]] = {}
        for row, group in enumerate(problem.groups):
            alike.setdefault(tuple(sorted(group.cost.tolist())), []).append(row)
        self._alike = [rows for rows in alike.values() if len(rows) > 1]
        self._kept = kept
        self.read = 0

    def _cost(self, levels: Ints) -> int:
        return self.problem.solution(self._choice(levels), self._kept).cost

    def _choice(self, levels: Ints) -> Ints:
        return np.array([order[i] for order, i in zip(self._order, levels, strict=True)])

    def _levels(self, choice: Ints) -> Ints:
        found = [int(np.flatnonzero(o == c)[0]) for o, c in zip(self._order, choice, strict=True)]
        return np.array(found)

    def random(self) -> Ints:
        """Return a plan that fills the budget: the largest uniform level, random sites one up."""
        tops = np.array([len(order) - 1 for order in self._order])
        levels = self._levels(smallest(self._unscored()).choice)
        rest = sorted(set(range(len(tops))) - {row for rows in self._alike for row in rows})
        for row in sorted(rest, key=lambda row: -tops[row]):
            while levels[row] < tops[row] and self._fits(levels, [row]):
                levels[row] += 1
        free = np.array([row for rows in self._alike for row in rows])
        while (raised := free[levels[free] < tops[free]]).size and self._fits(levels, raised):
            levels[raised] += 1
        for row in self._rng.permutation(free[levels[free] < tops[free]]):
            if self._fits(levels, [row]):
                levels[row] += 1
        return self._choice(levels)

    def _fits(self, levels: Ints, raised: Sequence[int] | Ints) -> bool:
        """Return whether some groups may go up a level."""
        above = levels.copy()
        above[raised] += 1
        return self._cost(above) <= self._context.budget_bytes

    def _unscored(self) -> Problem:
        problem = self.problem
        never = np.full(len(problem.bypasses), np.inf)
        return problem.with_scores(np.where(np.isfinite(problem.score), 0.0, np.inf), never)

    def offspring(self, parent: Ints, count: int) -> list[Ints]:
        """Return different plans, each a few level switches from the parent."""
        levels = self._levels(parent)
        found: dict[tuple[int, ...], Ints] = {}
        for _ in range(TRIES * count):
            child = levels.copy()
            for _ in range(min(self._rng.integers(1, 4), self._rng.integers(1, 4))):
                self._switch(child)
            if not np.array_equal(child, levels):
                found.setdefault(tuple(child.tolist()), self._choice(child))
            if len(found) == count:
                break
        return list(found.values())

    def _switch(self, levels: Ints) -> None:
        """Lower one group of equal costs by a level and raise another, in place."""
        sizes = np.array([len(rows) for rows in self._alike], dtype=float)
        rows = self._alike[int(self._rng.choice(len(sizes), p=sizes / sizes.sum()))]
        lower = [row for row in rows if levels[row] > 0]
        if lower:
            down = int(self._rng.choice(lower))
            upper = [r for r in rows if r != down and levels[r] < len(self._order[r]) - 1]
            if upper:
                levels[down] -= 1
                levels[int(self._rng.choice(upper))] += 1

    def select(self, plans: Sequence[Ints], units: int, survivors: int) -> list[Ints]:
        """Return the best plans on newly drawn text, best first."""
        drawn = sorted(self._rng.choice(self._oracle.pool, size=units, replace=False).tolist())
        decoded = [self._context.space.decode(self.params(plan)) for plan in plans]
        losses = [sum(self._oracle.losses(plan, drawn)) for plan in decoded]
        self.read += units * len(plans)
        return [plans[i] for i in np.argsort(losses, kind="stable")[:survivors]]

    def params(self, choice: Ints) -> dict[str, int]:
        """Return the parameters of a plan."""
        return self._context.params(self.problem.solution(choice, self._kept))


def _proposal(
    index: int, context: SearchContext, race: _Race, choice: Ints, generations: int
) -> Proposal:
    """Return the proposal of a parent."""
    params = race.params(choice)
    plan = context.space.decode(params)
    details = {"generations": generations, "units": race.read}
    return Proposal(index, params, plan, ORIGIN, context.family_of(plan), details)


propose = EvoPress()
