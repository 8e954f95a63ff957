"""From an allocation's profile to a plan of the space, at a budget.

A *ladder* is, of every linear, the options that differ in how much they keep and in nothing else:
one mask method and pattern over one quantizer at several sparsities, or one factorisation at
several ranks, with the option that keeps everything where the space offers it. At a target every
linear takes the option of the ladder whose share is nearest to its profile's; the target is the
largest whose plan holds the budget, and what bytes that leaves are filled. Embedding, head and
caches are uniform, as in the uniform baselines. Of all ladders and all such ends the plan with the
lowest predicted loss is the allocation's: what the search is started from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.search.allocations.base import AllocatedSite, Allocation, parse_allocation
from autocomp.search.correction import fit
from autocomp.search.problem import Floats, Ints, Problem, Solution

if TYPE_CHECKING:
    from autocomp.search.context import SearchContext

Lists = Mapping[str, Sequence[LayerSpec]]

HOW_MUCH = {"sparsity", "keep", "rank", "keep_percent"}
"""Fields of a mask's and of a factorisation's spec that say how much is kept."""

HALVINGS = 16
"""Steps of the search for a target."""


def share_kept(spec: LayerSpec, slot: str, shape: tuple[int, int]) -> float:
    """Return the share of its weights, or of its parameters, that an option keeps.

    Args:
        spec: The option.
        slot: ``mask`` or ``factor``.
        shape: (out, in) of the weight.
    """
    part = getattr(spec, slot)
    if part is None:
        return 1.0
    if slot == "factor":
        return float(part.rank_for(shape) * sum(shape) / prod(shape))
    return float(part.keep / part.m if part.sparsity is None else 1.0 - part.sparsity)


@dataclass(frozen=True)
class Ladder:
    """Options of every linear that differ only in how much they keep.

    Args:
        options: By group name, the index of the option on the group's list by share, ascending.
    """

    options: Mapping[str, Mapping[float, int]]

    @property
    def least(self) -> float:
        """The smallest share of all options."""
        return min(next(iter(shares)) for shares in self.options.values())

    def nearest(self, name: str, share: float) -> int:
        """Return the option of a group with the nearest share, the smaller one of two."""
        shares = self.options[name]
        return shares[min(shares, key=lambda kept: abs(kept - share))]


def ladders(sketch: Sketch, lists: Lists, slot: str) -> list[Ladder]:
    """Return the ladders that every linear of a space has, each with something to choose."""
    linears = [name for name in lists if sketch[name].kind == "linear"]
    found: dict[tuple[Any, LayerSpec], dict[str, dict[float, int]]] = {}
    for name in linears:
        options = list(lists[name])
        for index, spec in enumerate(options):
            if getattr(spec, slot) is None:
                continue
            rest = replace(spec, **{slot: None})
            shares = found.setdefault((_method(spec, slot), rest), {}).setdefault(name, {})
            shares[share_kept(spec, slot, sketch[name].shape)] = index
            for whole in _without(rest):
                if whole in options:
                    shares.setdefault(1.0, options.index(whole))
    return [
        Ladder({name: dict(sorted(shares.items())) for name, shares in rungs.items()})
        for rungs in found.values()
        if len(rungs) == len(linears) and any(len(shares) > 1 for shares in rungs.values())
    ]


def _without(rest: LayerSpec) -> tuple[LayerSpec, ...]:
    """Return what the rest of an option is where everything is kept, the nearest first.

    A refinement goes with its mask, and so may a step of the input, such as a shuffle.
    """
    unrefined = replace(rest, refinement=None)
    return rest, unrefined, replace(unrefined, input=None)


def _method(spec: LayerSpec, slot: str) -> tuple[Any, ...]:
    """Return what a mask or a factorisation is beside how much it keeps."""
    part = getattr(spec, slot)
    rest = (getattr(part, f.name) for f in fields(part) if f.name not in HOW_MUCH)
    return (type(part), *rest)


def offered(tokens: Sequence[str], sketch: Sketch, lists: Lists) -> tuple[str, ...]:
    """Return the allocations, by token, that have something to divide in a space."""
    return tuple(t for t in tokens if ladders(sketch, lists, parse_allocation(t).slot))


def allocated(context: "SearchContext", token: str, budget: int | None = None) -> Solution | None:
    """Return the plan that an allocation makes of a budget.

    Args:
        context: What is searched; it holds what the allocation read.
        token: The allocation.
        budget: In the unit of the problem's resource; the context's when ``None``.

    Returns:
        ``None`` where no plan of a ladder holds the budget, or the whole one does.
    """
    allocation = parse_allocation(token)
    problem = fit(context.effects, []).apply()
    limit = context.budget_bytes if budget is None else budget
    found = list(_plans(context, problem, allocation, context.signals[token], limit))
    return min(found, key=lambda solution: solution.score, default=None)


def _plans(
    context: "SearchContext",
    problem: Problem,
    allocation: Allocation,
    signals: Mapping[str, float],
    budget: int,
) -> Iterator[Solution]:
    """Yield the fullest plan of every ladder and of every choice of the ends that holds a budget.

    Args:
        context: What is searched.
        problem: With the scores that predict.
        allocation: Divides.
        signals: What it read, by site.
        budget: Largest cost.
    """
    sketch, lists = context.space.sketch, context.space.lists
    scores = {group.name: group.score for group in problem.groups}
    ends = list(product(context.shared_tokens("cache"), context.shared_tokens("ends")))
    for ladder in ladders(sketch, lists, allocation.slot):
        sites = [
            _site(sketch, name, signals, shares, scores[name])
            for name, shares in ladder.options.items()
        ]
        for cache, end in ends:
            outer = _outer(context, problem, {"cache": cache, "ends": end})
            found = _Filling(problem, allocation, ladder, sites, outer).fullest(budget)
            if found is not None:
                yield found


@dataclass(frozen=True)
class _Filling:
    """Plans of one ladder and of one choice of the ends, by target.

    Args:
        problem: Costs, and the scores that predict.
        allocation: Divides.
        ladder: What the linears choose from.
        sites: The linears as the profile sees them.
        outer: The choice of everything else, (groups,).
    """

    problem: Problem
    allocation: Allocation
    ladder: Ladder
    sites: Sequence[AllocatedSite]
    outer: Ints

    def plan(self, target: float) -> Solution:
        """Return the plan whose linears are nearest to the profile of a target."""
        shares = self.allocation.profile(self.sites, target)
        choice = self.outer.copy()
        for row, group in enumerate(self.problem.groups):
            if group.name in shares:
                choice[row] = self.ladder.nearest(group.name, shares[group.name])
        return self.problem.solution(choice, np.zeros(len(self.problem.bypasses), dtype=bool))

    def fullest(self, budget: int) -> Solution | None:
        """Return the plan of the largest target that holds a budget, its left-over bytes filled.

        What the next larger target changes, such as all linears of a block, is taken over one by
        one, in model order, while the budget holds. ``None`` where the smallest target does not
        hold it, or the whole model does: nothing is left to divide.
        """
        low, high = self.ladder.least, 1.0
        best = self.plan(low)
        if not self.problem.holds(best, budget) or self.problem.holds(self.plan(high), budget):
            return None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            found = self.plan(middle)
            if self.problem.holds(found, budget):
                low, best = middle, found
            else:
                high = middle
        return self._filled(best, self.plan(high), budget)

    def _filled(self, best: Solution, above: Solution, budget: int) -> Solution:
        """Return a plan with as many choices of a larger one as the budget holds."""
        for row in np.flatnonzero(best.choice != above.choice):
            choice = best.choice.copy()
            choice[row] = above.choice[row]
            found = self.problem.solution(choice, best.bypassed)
            if self.problem.holds(found, budget):
                best = found
        return best


def _site(
    sketch: Sketch,
    name: str,
    signals: Mapping[str, float],
    shares: Mapping[float, int],
    score: Floats,
) -> AllocatedSite:
    """Return a group as a profile sees it; its signal is the mean over its weights."""
    members = next(group for group in sketch.groups if group[0] == name)
    sizes = [prod(sketch[member].shape) for member in members]
    read = [signals.get(member, float("nan")) for member in members]
    signal = float(np.average(read, weights=sizes))
    losses = {share: float(score[index]) for share, index in shares.items()}
    return AllocatedSite(name, sum(sizes), signal, losses)


def _outer(context: "SearchContext", problem: Problem, tokens: Mapping[str, str | None]) -> Ints:
    """Return the choice in which caches, embedding and head have given tokens."""
    choice = np.zeros(len(problem.groups), dtype=np.int64)
    for row, group in enumerate(problem.groups):
        token = tokens.get(context.part(group.name))
        if token is not None:
            options = [spec.token() for spec in context.space.lists[group.name]]
            choice[row] = options.index(token)
    return choice
