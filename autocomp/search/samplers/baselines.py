"""Optuna's samplers over the same space, by name: what a search without scores reaches.

An ask builds an in-memory study of two objectives, loss and cost, out of the told trials, with a
fresh sampler of Optuna's defaults, and asks it for one integer a parameter:

* measured to the top rung: ``COMPLETE`` with both values;
* refused, or stopped at a rung: ``PRUNED`` without values, the constraint ``fidelity`` at 1. TPE
  ranks such trials behind all others; NSGA-II, NSGA-III and GP do not look at them;
* not finite: ``FAIL``, which none of them looks at; running: ``RUNNING`` with its parameters, from
  which TPE and GP keep away.

So a proposal is a function of the ask alone. What differs from one long-lived study of Optuna is
the random stream, which starts anew at every trial, and for GP the start of its kernel fit. The
generations of NSGA-II and NSGA-III follow from the told trials: each was asked when all before it
were told, and the parents of a generation are selected with a seed of that generation.

At a tight budget hardly any random assignment fits, so one that does not is brought within by
*random downgrades*: a random group takes its next smaller option, again and again; when no group
has a smaller one, random sub-blocks are dropped. That knows sizes and no score. What fits is left
as it is, so in a study without a budget nothing changes.

The plans of the context's allocations are enqueued: they are the first trials.

Assignments are canonical, so a repeated plan is seen; it is asked again, with the repeated one
running. Where there are variants, the variant is one more integer; one that is not searched stands
for the nearest that is. An index beyond the end of a shorter list stands for the last option.

Reference: Akiba et al. 2019, Optuna, https://arxiv.org/abs/1907.10902
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from autocomp.core.errors import InfeasibleError
from autocomp.core.seeds import SeedTree
from autocomp.core.variant import PARAMETER
from autocomp.search.ask import Ask, Proposal, Told
from autocomp.search.context import ALLOCATION, SearchContext
from autocomp.search.knapsack import Ints, Problem, Solution, smallest
from autocomp.search.records import FIDELITY

ATTEMPTS = 12


@dataclass(frozen=True)
class Baseline:
    """A sampler of Optuna's as one of ours.

    Args:
        name: Its name in the table.
        summary: One line about it.
        reference: URL of the paper.
        make: Returns it from a seed of 32 bits.
    """

    name: str
    summary: str
    reference: str
    make: Callable[[int], BaseSampler]

    def __call__(self, ask: Ask) -> Proposal | None:
        """Return the proposal of a logical trial.

        Args:
            ask: Number, seed, space and what was told.

        Returns:
            The proposal, or ``None`` when no new plan was found.

        Raises:
            InfeasibleError: If a budget is below the smallest reachable cost of its variant.
        """
        for context in ask.contexts:
            _check_reach(context.problem, context.budget_bytes)
        seed = ask.seed.child("trial", ask.index)
        rng = seed.child("downgrade").numpy()
        ranges: dict[str, BaseDistribution] = {
            name: _Range(0, range_.high) for name, range_ in ranges_of(ask.contexts).items()
        }
        known = {frozenset(trial.params.items()) for trial in ask.told}
        first = ask.contexts[0]
        enqueued = list(first.allocated.items())[ask.index : ask.index + 1]
        for token, solution in enqueued:
            params = first.params(solution)
            if frozenset(params.items()) not in known:
                return _proposal(ask, first, params, f"{ALLOCATION}:{token}")
        with _quiet():
            study = self._study(ask, seed, ranges)
            for _ in range(ATTEMPTS):
                context, wanted = solution_of(ask.contexts, study.ask(ranges).params)
                found = downgraded(context.problem, wanted, context.budget_bytes, rng)
                params = context.params(found) if found is not None else {}
                if not params or frozenset(params.items()) in known:
                    continue
                return _proposal(ask, context, params, self.name)
        return None

    def _study(
        self, ask: Ask, seed: SeedTree, ranges: Mapping[str, BaseDistribution]
    ) -> optuna.Study:
        """Return a study of the told trials whose sampler is at the start of its stream."""
        sampler = self.make(_bits(seed))
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        if not isinstance(sampler, BaseGASampler):
            study.add_trials([_frozen(ask.contexts, trial, ranges) for trial in ask.told])
            return study
        for trial in ask.told:
            _tell(study, sampler, _frozen(ask.contexts, trial, ranges))
        generation = 1
        while len(sampler.get_population(study, generation - 1)) >= (sampler.population_size or 0):
            selector = self.make(_bits(ask.seed.child("parents", generation)))
            assert isinstance(selector, BaseGASampler)
            selector.get_parent_population(study, generation)  # which the study keeps
            generation += 1
        return study


def _proposal(
    ask: Ask, context: SearchContext, params: Mapping[str, int], origin: str
) -> Proposal:
    """Return the proposal of parameters."""
    plan = context.space.decode(params)
    return Proposal(ask.index, params, plan, origin, context.family_of(plan))


class _Range(IntDistribution):
    """A range that the trials of a study in memory share, for it never changes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Range":
        """Return this range."""
        return self


def _check_reach(problem: Problem, budget: int) -> None:
    """Refuse a budget that no solution keeps.

    Raises:
        InfeasibleError: The message names the smallest reachable cost.
    """
    least = smallest(problem)
    if least.cost > budget:
        raise InfeasibleError(
            f"a budget of {budget:,} cannot be met: the smallest reachable cost is "
            f"{least.cost:,}. Raise the budget or add smaller options to the space."
        )


def ranges_of(contexts: Sequence[SearchContext]) -> dict[str, IntDistribution]:
    """Return the range of every parameter of all variants, the longest where they differ."""
    longest: dict[str, IntDistribution] = {}
    for context in contexts:
        for name, range_ in context.space.distributions().items():
            if name not in longest or range_.high > longest[name].high:
                longest[name] = range_
    return longest


def solution_of(
    contexts: Sequence[SearchContext], params: Mapping[str, int]
) -> tuple[SearchContext, Solution]:
    """Return the variant that any assignment within the ranges is of, and what it decides."""
    wanted = params.get(PARAMETER, contexts[0].variant)
    context = min(contexts, key=lambda other: abs(other.variant - wanted))
    lists = context.space.lists
    within = {name: min(params[name], len(options) - 1) for name, options in lists.items()}
    return context, context.problem.solution(*context.decisions(within))


def downgraded(
    problem: Problem, solution: Solution, budget: int, rng: np.random.Generator
) -> Solution | None:
    """Return a solution brought within a budget by random downgrades; as it is where it fits.

    Args:
        problem: Costs and limits; scores are not looked at.
        solution: Any solution.
        budget: Largest cost.
        rng: Source of the choices.

    Returns:
        ``None`` where the downgrades led to no solution that keeps all limits.
    """
    choice, bypassed = solution.choice.copy(), solution.bypassed.copy()
    every = np.arange(len(choice))
    tables: dict[int, Ints] = {}
    steps = problem.cost.size + len(bypassed)  # one resource never needs more
    for _ in range(steps):
        found = problem.solution(choice, bypassed)
        if problem.holds(found, budget):
            return found
        resource, cost, bypass_cost = _exceeded(problem, found, budget)
        if resource not in tables:
            tables[resource] = _next_smaller(problem, cost)
        smaller = tables[resource][every, choice]
        rows = np.flatnonzero(problem.active(bypassed) & (smaller >= 0))
        if rows.size:
            row = int(rng.choice(rows))
            choice[row] = smaller[row]
            continue
        inside = cost[every, choice] @ problem.membership
        blocks = np.flatnonzero(~bypassed & (bypass_cost < inside))
        if not blocks.size:
            return None
        bypassed[int(rng.choice(blocks))] = True
    return None


def _exceeded(problem: Problem, solution: Solution, budget: int) -> tuple[int, Ints, Ints]:
    """Return the first resource that is exceeded, and what options and bypasses cost of it."""
    if solution.cost > budget:
        return -1, problem.cost, problem.bypass_cost
    pairs = zip(solution.used, problem.limits, strict=True)
    index = next(i for i, (used, limit) in enumerate(pairs) if used > limit.bound)
    return index, problem.limits[index].cost, problem.limits[index].bypass_cost


def _next_smaller(problem: Problem, cost: Ints) -> Ints:
    """Return the index of the next smaller option of every option; -1 where there is none."""
    table = np.full(cost.shape, -1, dtype=np.int64)
    for row, group in enumerate(problem.groups):
        allowed = np.flatnonzero(np.isfinite(group.score))
        order = allowed[np.argsort(cost[row, allowed], kind="stable")]
        sizes = cost[row, order]
        before = np.searchsorted(sizes, sizes, side="left") - 1
        table[row, order] = np.where(before >= 0, order[before], -1)
    return table


def _frozen(
    contexts: Sequence[SearchContext], trial: Told, ranges: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    """Return a told trial as Optuna's; what its variant does not have is at its default."""
    loss = trial.loss if trial.state == "COMPLETE" else None
    _, solution = solution_of(contexts, trial.params)
    return create_trial(
        state=TrialState[trial.state],
        params={name: trial.params.get(name, 0) for name in ranges},
        distributions=dict(ranges),
        values=None if loss is None else [loss, float(solution.cost)],
        constraints={FIDELITY: 1.0} if trial.state == "PRUNED" else {},
    )


def _tell(study: optuna.Study, sampler: BaseGASampler, trial: FrozenTrial) -> None:
    """Add a trial; one with values gets the generation in which it would have been asked."""
    if trial.state != TrialState.COMPLETE:
        study.add_trial(trial)
        return
    asked = create_trial(
        state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions
    )
    study.add_trial(asked)
    running = study.get_trials(deepcopy=False)[-1]
    sampler.get_trial_generation(study, running)
    study.tell(running.number, trial.values)


def _bits(seed: SeedTree) -> int:
    """Return what Optuna takes as a seed."""
    return seed.seed % 2**32


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing every study in memory, and what is experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


RANDOM = Baseline(
    "random",
    "every option as likely, then random downgrades to the budget",
    "https://www.jmlr.org/papers/v13/bergstra12a.html",
    lambda seed: RandomSampler(seed=seed),
)
TPE = Baseline(
    "tpe",
    "tree-structured Parzen estimators of Optuna, one parameter at a time",
    "https://arxiv.org/abs/2304.11127",
    lambda seed: TPESampler(seed=seed),
)
NSGAII = Baseline(
    "nsgaii",
    "the genetic algorithm NSGA-II of Optuna, generations of 50",
    "https://doi.org/10.1109/4235.996017",
    lambda seed: NSGAIISampler(seed=seed),
)
NSGAIII = Baseline(
    "nsgaiii",
    "the genetic algorithm NSGA-III of Optuna, generations of 50",
    "https://doi.org/10.1109/TEVC.2013.2281535",
    lambda seed: NSGAIIISampler(seed=seed),
)
GP = Baseline(
    "gp",
    "Gaussian processes of Optuna; 6 s and more an ask at 200 parameters",
    "https://arxiv.org/abs/1807.02811",
    lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
)
