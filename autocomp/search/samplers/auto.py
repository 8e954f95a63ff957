"""What to try next: a pure function of the seed, the trial's number and the trials told before it.

1. *Uniform* baselines: one option for all decoder linears times one for the embedding.
2. *Probes*: the best plan at the budget that must use sparsity, low rank or bypasses, or nothing
   but quantization.
3. *Ladder*: the knapsack at the budget with uncorrected scores, then with corrected ones, and at
   smaller budgets.
4. *Variants*: the corrected knapsack at the budget, once for every variant but the first.
5. *Refinement* around the best plan measured at a budget. A *step* solves the knapsack with scores
   drawn from the posterior of the correction, and a bonus for the options of the best plan that is
   just large enough to leave about r groups changed (a trust region: a plan that differs
   everywhere is where scores are wrong). A *mutation* switches one to three random groups or a
   sub-block, repairs the budget, and is the best of many such by drawn scores. A *knapsack* is the
   plain solve, near the expected scores.

A plan that was told before is drawn again, so no trial is spent twice on one plan.

Where there are variants, steps 1 to 3 look at the first of them, the base unless it cannot hold
the budget. A refinement first draws a variant. Each is worth the lower of what its best plan
measured at the budget and of what its corrected knapsack would measure, drawn from the posterior
of the correction; the lowest wins. So a variant that is known well and is worse gets nothing, and
one that is not known well has a chance. One refinement in ten takes any of them, for the
correction may be wrong.

Reference: Thompson 1933, https://doi.org/10.1093/biomet/25.3-4.285 (sampling from the posterior);
Sieberling et al. 2024, https://arxiv.org/abs/2410.14649 (level-switch mutation).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocomp.search.ask import Ask, Proposal, Told
from autocomp.search.context import SearchContext
from autocomp.search.correction import Correction, Evidence, fit
from autocomp.search.knapsack import Problem, Solution, repair, smallest, solve

ATTEMPTS = 12
STEP_SIZES = (6, 12, 24, 48)
MUTANTS = 24
TEMPERATURES = (0.5, 1.0)
FULL_ERROR, STOPPED_ERROR = 0.02, 0.15
MIX = {"knapsack": 0.15, "step": 0.7, "mutation": 0.15}
ANY_VARIANT = 0.1


def propose(ask: Ask) -> Proposal | None:
    """Return the proposal of a logical trial.

    Args:
        ask: Number, seed, space and what was told.

    Returns:
        The proposal, or ``None`` when no new plan was found: the space is exhausted near the best.

    Raises:
        InfeasibleError: If the budget is below the smallest reachable size.
    """
    index, contexts, told = ask.index, ask.contexts, ask.told
    known = {frozenset(t.params.items()) for t in told}

    def fresh(context: SearchContext, solution: Solution | None, origin: str) -> Proposal | None:
        if solution is None:
            return None
        params = context.params(solution)
        if frozenset(params.items()) in known:
            return None
        plan = context.space.decode(params)
        if context.exact_bytes(plan) > context.budget_bytes:
            return None
        return Proposal(
            logical=index,
            params=params,
            plan=plan,
            origin=origin,
            family=context.family_of(plan),
        )

    opening = _opening(index, contexts, told)
    if opening and (proposal := fresh(*opening)):
        return proposal
    rng = ask.seed.child("trial", index).numpy()
    for _ in range(ATTEMPTS):
        if proposal := fresh(*_refine(rng, contexts, told)):
            return proposal
    return None


def _opening(
    index: int, contexts: Sequence[SearchContext], told: Sequence[Told]
) -> tuple[SearchContext, Solution | None, str] | None:
    """Return the variant and the scheduled solution of an early trial, and its origin."""
    context, *others = contexts
    if index < len(context.uniforms):
        return context, context.uniforms[index], "uniform"
    index -= len(context.uniforms)
    if index < len(context.kinds):
        kind = context.kinds[index]
        problem = correction_of(context, told).apply()
        return context, context.probe(problem, kind), f"probe:{kind}"
    index -= len(context.kinds)
    if index == 0:
        return context, solve(context.problem, context.budget_bytes), "knapsack:score"
    index -= 1
    if index < len(context.budgets):
        budget = context.budgets[index]
        problem = correction_of(context, told, best_within(context, told, budget)).apply()
        return context, solve(problem, budget), "knapsack" if index == 0 else "ladder"
    index -= len(context.budgets)
    if index < len(others):
        other = others[index]
        problem = correction_of(other, told, prior=correction_of(context, told)).apply()
        return other, solve(problem, other.budget_bytes), "variant"
    return None


def best_within(context: SearchContext, told: Sequence[Told], budget: int) -> Told | None:
    """Return the fully measured trial of a variant with the lowest loss that a budget allows."""

    def fits(trial: Told) -> bool:
        if not context.owns(trial.params):
            return False
        return context.problem.solution(*context.decisions(trial.params)).cost <= budget

    measured = [t for t in told if t.state == "COMPLETE" and t.loss is not None and fits(t)]
    return min(measured, key=lambda t: (t.loss, t.logical), default=None)


def correction_of(
    context: SearchContext,
    told: Sequence[Told],
    focus: Told | None = None,
    prior: Correction | None = None,
) -> Correction:
    """Return the correction that fits the measured trials of a variant.

    Args:
        context: The variant.
        told: Trials of any variant.
        focus: Where it should be sharpest: near the loss of this trial.
        prior: The correction of the first variant, for any other.
    """
    plans = [
        Evidence(
            *context.decisions(t.params),
            loss=t.loss,
            relative_error=FULL_ERROR if t.state == "COMPLETE" else STOPPED_ERROR,
        )
        for t in told
        if t.loss is not None and context.owns(t.params)
    ]
    effects = context.effects if prior is None else context.effects.informed_by(prior)
    return fit(effects, plans, focus.loss if focus else None)


@dataclass(frozen=True)
class _Outlook:
    """A variant at a budget: the best plan measured, and the correction that is sharp there."""

    context: SearchContext
    budget: int
    best: Told | None
    correction: Correction

    def promise(self, rng: np.random.Generator) -> float:
        """Draw the loss that the variant's next plan may reach."""
        problem = self.correction.apply()
        if smallest(problem).cost > self.budget:
            return float("inf")
        found = solve(problem, self.budget)
        drawn = self.correction.apply(self.correction.sampled_factors(rng))
        value = drawn.solution(found.choice, found.bypassed).score
        best = self.best.loss if self.best is not None else None
        return value if best is None else min(best, value)


def _outlook(
    rng: np.random.Generator,
    contexts: Sequence[SearchContext],
    told: Sequence[Told],
    budget: int,
) -> _Outlook:
    """Return the variant that gets a refinement at a budget."""
    first = contexts[0]
    prior = correction_of(first, told) if len(contexts) > 1 else None

    def look(context: SearchContext) -> _Outlook:
        limit = min(budget, context.budget_bytes)
        best = best_within(context, told, limit)
        shared = None if context is first else prior
        return _Outlook(context, limit, best, correction_of(context, told, best, shared))

    if len(contexts) == 1:
        return look(first)
    outlooks = [look(context) for context in contexts]
    promises = [outlook.promise(rng) for outlook in outlooks]
    possible = [i for i, promise in enumerate(promises) if promise < np.inf] or [0]
    if rng.random() < ANY_VARIANT:
        return outlooks[int(rng.choice(possible))]
    return outlooks[min(possible, key=promises.__getitem__)]


def _refine(
    rng: np.random.Generator, contexts: Sequence[SearchContext], told: Sequence[Told]
) -> tuple[SearchContext, Solution | None, str]:
    """Return the variant of one refinement, its solution and its origin."""
    first = contexts[0]
    budget = first.budget_bytes
    if len(first.budgets) > 1 and rng.random() > first.schedule.at_budget:
        budget = int(rng.choice(first.budgets[1:]))
    outlook = _outlook(rng, contexts, told, budget)
    context, correction, best = outlook.context, outlook.correction, outlook.best
    move = str(rng.choice(list(MIX), p=list(MIX.values())))
    if best is None or move == "knapsack":
        factors = correction.sampled_factors(rng, temperature=0.3 * rng.random())
        return context, solve(correction.apply(factors), outlook.budget), "knapsack"
    factors = correction.sampled_factors(rng, float(rng.choice(TEMPERATURES)))
    problem = correction.apply(factors)
    around = problem.solution(*context.decisions(best.params))
    if move == "step":
        size = int(rng.choice(STEP_SIZES))
        return context, step(problem, around, outlook.budget, size), "step"
    mutants = [_mutant(rng, problem, around, outlook.budget) for _ in range(MUTANTS)]
    found = min(
        (mutant for mutant in mutants if mutant is not None),
        key=lambda solution: solution.score,
        default=None,
    )
    return context, found, "mutation"


def changes(problem: Problem, one: Solution, other: Solution) -> int:
    """Return how many groups two solutions treat differently."""
    states = [np.where(problem.active(s.bypassed), s.choice, -1) for s in (one, other)]
    return int((states[0] != states[1]).sum())


def step(problem: Problem, around: Solution, budget: int, size: int) -> Solution:
    """Solve with about ``size`` groups changed from a solution.

    The options of ``around`` get a bonus on their score, bisected until ``size`` groups change.
    """
    rows = np.flatnonzero(problem.active(around.bypassed))
    high = float(np.abs(problem.score[rows, around.choice[rows]]).sum()) + 1e-12
    low = high * 1e-9
    best, closest = around, np.inf
    for _ in range(12):
        bonus = float(np.sqrt(low * high))
        score = problem.score.copy()
        score[rows, around.choice[rows]] -= bonus
        bypass_score = problem.bypass_score - bonus * around.bypassed
        found = solve(problem.with_scores(score, bypass_score), budget)
        changed = changes(problem, found, around)
        if changed and abs(changed - size) < closest:
            best, closest = found, abs(changed - size)
        low, high = (bonus, high) if changed > size else (low, bonus)
    return problem.solution(best.choice, best.bypassed)


def _mutant(
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
