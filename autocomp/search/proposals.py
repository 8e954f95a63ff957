"""What to try next: a pure function of the seed, the trial's number and the trials told before it.

1. *Uniform* baselines: one option for all decoder linears times one for the embedding.
2. *Probes*: the best plan at the budget that must use sparsity, low rank or bypasses, or nothing
   but quantization.
3. *Ladder*: the knapsack at the budget with uncorrected scores, then with corrected ones, and at
   smaller budgets.
4. *Refinement* around the best plan measured at a budget. A *step* solves the knapsack with scores
   drawn from the posterior of the correction, and a bonus for the options of the best plan that is
   just large enough to leave about r groups changed (a trust region: a plan that differs
   everywhere is where scores are wrong). A *mutation* switches one to three random groups or a
   sub-block, repairs the budget, and is the best of many such by drawn scores. A *knapsack* is the
   plain solve, near the expected scores.

A plan that was told before is drawn again, so no trial is spent twice on one plan.

Reference: Thompson 1933, https://doi.org/10.1093/biomet/25.3-4.285 (sampling from the posterior);
Sieberling et al. 2024, https://arxiv.org/abs/2410.14649 (level-switch mutation).
"""

from collections.abc import Sequence

import numpy as np

from autocomp.core.seeds import SeedTree
from autocomp.search.context import Proposal, SearchContext, Told
from autocomp.search.correction import Correction, Evidence, fit
from autocomp.search.knapsack import Problem, Solution, repair, solve

ATTEMPTS = 12
STEP_SIZES = (6, 12, 24, 48)
MUTANTS = 24
TEMPERATURES = (0.5, 1.0)
FULL_ERROR, STOPPED_ERROR = 0.02, 0.15
MIX = {"knapsack": 0.15, "step": 0.7, "mutation": 0.15}


def propose(
    index: int, seed: SeedTree, context: SearchContext, told: Sequence[Told]
) -> Proposal | None:
    """Return the proposal of a logical trial.

    Args:
        index: Logical number of the trial, from 0.
        seed: The study's seed; the trial uses ``seed.child("trial", index)``.
        context: What is searched.
        told: Trials told so far; only those with a smaller logical number are looked at.

    Returns:
        The proposal, or ``None`` when no new plan was found: the space is exhausted near the best.

    Raises:
        InfeasibleError: If the budget is below the smallest reachable size.
    """
    told = sorted((t for t in told if t.logical < index), key=lambda t: t.logical)
    known = {frozenset(t.params.items()) for t in told}

    def fresh(solution: Solution | None, origin: str) -> Proposal | None:
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

    opening = _opening(index, context, told)
    if opening and (proposal := fresh(*opening)):
        return proposal
    rng = seed.child("trial", index).numpy()
    for _ in range(ATTEMPTS):
        if proposal := fresh(*_refine(rng, context, told)):
            return proposal
    return None


def _opening(
    index: int, context: SearchContext, told: Sequence[Told]
) -> tuple[Solution | None, str] | None:
    """Return the scheduled solution of an early trial, and its origin."""
    if index < len(context.uniforms):
        return context.uniforms[index], "uniform"
    index -= len(context.uniforms)
    if index < len(context.kinds):
        kind = context.kinds[index]
        problem = correction_of(context, told).apply()
        return context.probe(problem, kind), f"probe:{kind}"
    index -= len(context.kinds)
    if index == 0:
        return solve(context.problem, context.budget_bytes), "knapsack:score"
    index -= 1
    if index < len(context.budgets):
        budget = context.budgets[index]
        problem = correction_of(context, told, best_within(context, told, budget)).apply()
        return solve(problem, budget), "knapsack" if index == 0 else "ladder"
    return None


def best_within(context: SearchContext, told: Sequence[Told], budget: int) -> Told | None:
    """Return the fully measured trial with the lowest KL whose cost lies within a budget."""

    def fits(trial: Told) -> bool:
        return context.problem.solution(*context.decisions(trial.params)).cost <= budget

    measured = [t for t in told if t.state == "COMPLETE" and t.kl_nats is not None and fits(t)]
    return min(measured, key=lambda t: (t.kl_nats, t.logical), default=None)


def correction_of(
    context: SearchContext, told: Sequence[Told], focus: Told | None = None
) -> Correction:
    """Return the correction that fits the measured trials, sharpest near the KL of one of them."""
    plans = [
        Evidence(
            *context.decisions(t.params),
            kl_nats=t.kl_nats,
            relative_error=FULL_ERROR if t.state == "COMPLETE" else STOPPED_ERROR,
        )
        for t in told
        if t.kl_nats is not None
    ]
    return fit(context.effects, plans, focus.kl_nats if focus else None)


def _refine(
    rng: np.random.Generator, context: SearchContext, told: Sequence[Told]
) -> tuple[Solution | None, str]:
    """Return one refinement and its origin."""
    budget = context.budget_bytes
    if len(context.budgets) > 1 and rng.random() > context.schedule.at_budget:
        budget = int(rng.choice(context.budgets[1:]))
    best = best_within(context, told, budget)
    correction = correction_of(context, told, best)
    move = str(rng.choice(list(MIX), p=list(MIX.values())))
    if best is None or move == "knapsack":
        factors = correction.sampled_factors(rng, temperature=0.3 * rng.random())
        return solve(correction.apply(factors), budget), "knapsack"
    factors = correction.sampled_factors(rng, float(rng.choice(TEMPERATURES)))
    problem = correction.apply(factors)
    around = problem.solution(*context.decisions(best.params))
    if move == "step":
        return step(problem, around, budget, int(rng.choice(STEP_SIZES))), "step"
    mutants = [_mutant(rng, problem, around, budget) for _ in range(MUTANTS)]
    return min(
        (mutant for mutant in mutants if mutant is not None),
        key=lambda solution: solution.score,
        default=None,
    ), "mutation"


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
