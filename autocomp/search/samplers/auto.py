"""What to try next, by scores, by what was measured, and by gradients.

1. *Uniform* baselines: one option for all decoder linears times one for the embedding.
2. *Allocations*: what OWL, SAMSP and ASVD make of the budget, where the space has their options
   (:mod:`autocomp.search.allocate`).
3. *Probes*: the best plan at the budget that must use sparsity, low rank or bypasses, or nothing
   but quantization.
4. *Ladder*: the knapsack at the budget with uncorrected scores, then with corrected ones, and at
   smaller budgets.
5. *Variants*: the corrected knapsack at the budget, once for every variant but the first.
6. *Alone*: where the best plan at a smaller budget mixes kinds, what quantization alone makes of
   that budget, once; kinds that pay at the largest budget may not at others.
7. *Refinement* around the best plan measured at a budget, by one of these moves:

   * *linear*: a trust-region step by the gradient of the plan's own loss, as long as such steps
     lead to better plans (:mod:`autocomp.search.samplers._linear`). At a smaller budget the first
     one starts from the best plan of the next larger budget (*continued*).
   * *step*: a trust-region step by scores drawn from the posterior of the correction. A bonus for
     the options of the best plan is just large enough to leave about r groups changed, for a plan
     that differs everywhere is where scores are wrong.
   * *mutation*: one to three random groups or a sub-block are switched and the budget repaired;
     the best of many such by drawn scores. *crossover*: the same of mixtures of two good plans.
   * *knapsack*: the plain solve, near the expected scores.

A plan that was told before is drawn again, so no trial is spent twice on one plan; at the same
budget first, or budgets at which moves rarely find something new would get less than their share.
Steps 1 to 4 look at the first variant, the base unless it cannot hold the budget; a refinement
first draws a variant (:mod:`autocomp.search.samplers.outlook`).

Reference: Sieberling et al. 2024, https://arxiv.org/abs/2410.14649 (level-switch mutation).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autocomp.search.ask import Ask, Proposal, Told
from autocomp.search.context import ALLOCATION, QUANTIZED, SearchContext
from autocomp.search.knapsack import solve
from autocomp.search.problem import Problem, Solution
from autocomp.search.samplers._linear import (
    LINEAR,
    Gradient,
    Read,
    Trust,
    TrustRegion,
    neighbourhood,
    to_read,
    weights,
)
from autocomp.search.samplers._moves import changes, crossed, mutant, step
from autocomp.search.samplers.outlook import Outlook, best_within, correction_of, outlook

ATTEMPTS, BUDGET_ATTEMPTS = 24, 6
STEP_SIZES = (6, 12, 24, 48)
MUTANTS = 24
HALVINGS = 4
TEMPERATURES = (0.5, 1.0)
PARENTS = 8
CONTINUED = "continued"
ALONE = "alone"
MIX = {LINEAR: 0.9, "knapsack": 0.15, "step": 0.45, "mutation": 0.2, "crossover": 0.2}
"""Chance of a step by the gradient, then shares of the other moves."""


def propose(ask: Ask) -> Proposal | None:
    """Scores, what was measured, gradient steps and evolution together (the default).

    Args:
        ask: Number, seed, space and what was told.

    Returns:
        The proposal, or ``None`` when no new plan was found: the space is exhausted near the best.

    Raises:
        InfeasibleError: If the budget is below the smallest reachable size.
    """
    index, contexts, told = ask.index, ask.contexts, ask.told
    known = {frozenset(t.params.items()) for t in told}

    def fresh(move: _Move) -> Proposal | None:
        context = move.context
        if move.solution is None:
            return None
        params = context.params(move.solution)
        if frozenset(params.items()) in known:
            return None
        plan = context.space.decode(params)
        if context.exact_bytes(plan) > context.budget_bytes or not context.within(plan):
            return None
        return Proposal(
            logical=index,
            params=params,
            plan=plan,
            origin=move.origin,
            family=context.family_of(plan),
            details=move.details,
        )

    opening = _opening(index, contexts, told)
    if opening and (proposal := fresh(opening)):
        return proposal
    rng = ask.seed.child("trial", index).numpy()
    for attempt in range(ATTEMPTS):
        if not attempt % BUDGET_ATTEMPTS:
            budget = _budget(rng, contexts[0])
        if proposal := fresh(_refine(rng, ask, budget, linear=attempt < ATTEMPTS // 4)):
            return proposal
    return None


@dataclass(frozen=True)
class _Move:
    """What a proposal may be made of.

    Args:
        context: Its variant.
        solution: Its decisions; ``None`` when the move found nothing.
        origin: Name of the move.
        details: What later proposals read of it.
    """

    context: SearchContext
    solution: Solution | None
    origin: str
    details: Mapping[str, Any] = field(default_factory=dict)


def _opening(index: int, contexts: Sequence[SearchContext], told: Sequence[Told]) -> _Move | None:
    """Return the variant and the scheduled solution of an early trial, and its origin."""
    context, *others = contexts
    if index < len(context.uniforms):
        return _Move(context, context.uniforms[index], "uniform")
    index -= len(context.uniforms)
    if index < len(context.allocated):
        token, found = list(context.allocated.items())[index]
        return _Move(context, found, f"{ALLOCATION}:{token}")
    index -= len(context.allocated)
    if index < len(context.kinds):
        kind = context.kinds[index]
        problem = correction_of(context, told).apply()
        return _Move(context, context.probe(problem, kind), f"probe:{kind}")
    index -= len(context.kinds)
    if index == 0:
        found = solve(context.problem, context.budget_bytes)
        return _Move(context, found, "knapsack:score")
    index -= 1
    if index < len(context.budgets):
        budget = context.budgets[index]
        problem = correction_of(context, told, best_within(context, told, budget)).apply()
        return _Move(context, solve(problem, budget), "ladder" if index else "knapsack")
    index -= len(context.budgets)
    if index < len(others):
        other = others[index]
        problem = correction_of(other, told, prior=correction_of(context, told)).apply()
        return _Move(other, solve(problem, other.budget_bytes), "variant")
    return None


def _budget(rng: np.random.Generator, first: SearchContext) -> int:
    """Draw the budget of a refinement."""
    if len(first.budgets) > 1 and rng.random() > first.schedule.at_budget:
        return int(rng.choice(first.budgets[1:]))
    return first.budget_bytes


def _refine(rng: np.random.Generator, ask: Ask, budget: int, *, linear: bool) -> _Move:
    """Return one refinement; ``linear`` says whether it may be a step by the gradient."""
    look = outlook(rng, ask.contexts, ask.told, budget)
    shares = {name: MIX[name] for name in MIX if not ask.moves or name in ask.moves}
    if look.best is None or not shares:
        return _knapsack(rng, look)
    if "knapsack" in shares and (alone := _alone(ask, look)):
        return alone
    if rng.random() < shares.pop(LINEAR, 0.0) and linear:
        move = _linear(rng, ask, look)
        if move is not None:
            return move
    chances = np.array(list(shares.values()))
    if not chances.size:
        return _knapsack(rng, look)
    return MOVES[str(rng.choice(list(shares), p=chances / chances.sum()))](rng, ask, look)


def _knapsack(rng: np.random.Generator, look: Outlook) -> _Move:
    """Solve with scores near the expected ones."""
    factors = look.correction.sampled_factors(rng, temperature=0.3 * rng.random())
    found = solve(look.correction.apply(factors), look.budget)
    return _Move(look.context, found, "knapsack")


def _alone(ask: Ask, look: Outlook) -> _Move | None:
    """Return the plan of quantization alone, once where a smaller budget's best plan mixes."""
    context, best = look.context, look.best
    if best is None or look.budget == context.budget_bytes:
        return None
    if any(t.origin == ALONE and t.details.get("budget") == look.budget for t in ask.told):
        return None
    if context.family_of(context.space.decode(best.params)) == QUANTIZED:
        return None
    found = context.probe(look.correction.apply(), QUANTIZED, look.budget)
    if found is None or context.params(found) in [trial.params for trial in ask.told]:
        return None
    return _Move(context, found, ALONE, {"budget": look.budget})


def _linear(rng: np.random.Generator, ask: Ask, look: Outlook) -> _Move | None:
    """Step by the gradient at the best plan, or at the best one of the next larger budget."""
    context, budget, centre = look.context, look.budget, look.best
    if centre is None or not ask.oracle.parts:
        return None
    own = [trial for trial in ask.told if context.owns(trial.params)]
    here = [t for t in own if t.origin in (LINEAR, CONTINUED) and t.details["budget"] == budget]
    larger = [other for other in ask.contexts[0].budgets if other > budget]
    above = best_within(context, ask.told, min(larger)) if larger and not here else None
    if above is not None and above.number != centre.number:
        there = [t for t in own if t.origin == LINEAR and t.details["budget"] == min(larger)]
        read = to_read(there, above.number, ask.oracle.parts, more=False)
        return _follow(rng, ask, look, above, read, CONTINUED, 0)
    region = TrustRegion.of(len(context.problem.groups))
    size = region.size(here)
    read = to_read(here, centre.number, ask.oracle.parts, more=not size)
    return (
        None
        if read is None
        else _follow(rng, ask, look, centre, read, LINEAR, size or region.start)
    )


def _follow(
    rng: np.random.Generator,
    ask: Ask,
    look: Outlook,
    centre: Told,
    read: Sequence[Read],
    origin: str,
    size: int,
) -> _Move:
    """Return a step from a plan by some gradients.

    Args:
        rng: Draws what is trusted, where a step from the plan was tried before.
        ask: What is known.
        look: The variant and the budget.
        centre: Where it starts.
        read: The gradients.
        origin: Its name.
        size: Groups that it changes; 0 takes the budget's knapsack, however many that changes.
    """
    context, budget = look.context, look.budget
    trials = {trial.number: trial for trial in ask.told}
    gradients = [
        Gradient(
            ask.oracle.linearised(context.space.decode(trials[number].params), part),
            context.problem.solution(*context.decisions(trials[number].params)),
            weight,
        )
        for (number, part), weight in zip(read, weights(read), strict=True)
    ]
    own = [trial for trial in ask.told if context.owns(trial.params)]
    here = context.problem.solution(*context.decisions(centre.params))
    near = neighbourhood(context, look.correction, here, gradients)
    trusted = Trust.of(own, len(context.problem.groups))
    tried = any(trial.details.get("around") == centre.number for trial in own)
    trust = trusted.draw(rng) if tried else trusted.mean.copy()
    for _ in range(HALVINGS):
        problem = near.problem(trust)
        found = step(problem, here, budget, size) if size else solve(problem, budget)
        if changes(problem, found, here):
            break
        trust[1:] /= 2  # a step shows what curvature is; none shows nothing
    details = {
        "around": centre.number,
        "read": [list(pair) for pair in read],
        "from": centre.loss,
        "budget": budget,
        "size": size or changes(problem, found, here),
        "promise": -found.score,
        **near.terms(found),
    }
    return _Move(context, found, origin, details)


def _step(rng: np.random.Generator, ask: Ask, look: Outlook) -> _Move:
    """Solve near the best plan with scores drawn from the posterior."""
    problem, around = _drawn(rng, look)
    size = int(rng.choice(STEP_SIZES))
    return _Move(look.context, step(problem, around, look.budget, size), "step")


def _mutation(rng: np.random.Generator, ask: Ask, look: Outlook) -> _Move:
    """Take the best by drawn scores of many random level switches of the best plan."""
    problem, around = _drawn(rng, look)
    found = [mutant(rng, problem, around, look.budget) for _ in range(MUTANTS)]
    return _Move(look.context, _lowest(found), "mutation")


def _crossover(rng: np.random.Generator, ask: Ask, look: Outlook) -> _Move:
    """Take the best by drawn scores of many mixtures of the best plan with other good ones."""
    problem, around = _drawn(rng, look)
    context = look.context
    rivals = [t for t in ask.told if t.state == "COMPLETE" and context.owns(t.params)]
    rivals = sorted(rivals, key=lambda t: (t.loss or np.inf, t.logical))[:PARENTS]
    mates = [problem.solution(*context.decisions(trial.params)) for trial in rivals]
    found = [
        crossed(rng, problem, around, mates[int(rng.integers(len(mates)))], look.budget)
        for _ in range(MUTANTS)
    ]
    return _Move(context, _lowest(found), "crossover")


def _drawn(rng: np.random.Generator, look: Outlook) -> tuple[Problem, Solution]:
    """Return the problem with drawn scores, and the best plan in it."""
    assert look.best is not None
    factors = look.correction.sampled_factors(rng, float(rng.choice(TEMPERATURES)))
    problem = look.correction.apply(factors)
    return problem, problem.solution(*look.context.decisions(look.best.params))


def _lowest(found: Sequence[Solution | None]) -> Solution | None:
    """Return the solution with the lowest score."""
    some = (solution for solution in found if solution is not None)
    return min(some, key=lambda solution: solution.score, default=None)


MOVES: dict[str, Callable[[np.random.Generator, Ask, Outlook], _Move]] = {
    "knapsack": lambda rng, _, look: _knapsack(rng, look),
    "step": _step,
    "mutation": _mutation,
    "crossover": _crossover,
}
