"""What is known of a variant at a budget: its best measured plan and the fitted correction.

Where there are variants, one of them gets a refinement. Each is worth the lower of what its best
plan measured at the budget and of what its corrected knapsack would measure, drawn from the
posterior of the correction; the lowest wins. So a variant that is known well and is worse gets
nothing, and one that is not known well has a chance. One refinement in ten takes any of them, for
the correction may be wrong.

Reference: Thompson 1933, https://doi.org/10.1093/biomet/25.3-4.285 (sampling from the posterior).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocomp.search.ask import Told
from autocomp.search.context import SearchContext
from autocomp.search.correction import Correction, Evidence, fit
from autocomp.search.knapsack import smallest, solve

FULL_ERROR, STOPPED_ERROR = 0.02, 0.15
ANY_VARIANT = 0.1


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
class Outlook:
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


def outlook(
    rng: np.random.Generator,
    contexts: Sequence[SearchContext],
    told: Sequence[Told],
    budget: int,
) -> Outlook:
    """Return the variant that gets a refinement at a budget."""
    first = contexts[0]
    prior = correction_of(first, told) if len(contexts) > 1 else None

    def look(context: SearchContext) -> Outlook:
        limit = min(budget, context.budget_bytes)
        best = best_within(context, told, limit)
        shared = None if context is first else prior
        return Outlook(context, limit, best, correction_of(context, told, best, shared))

    if len(contexts) == 1:
        return look(first)
    outlooks = [look(context) for context in contexts]
    promises = [outlook.promise(rng) for outlook in outlooks]
    possible = [i for i, promise in enumerate(promises) if promise < np.inf] or [0]
    if rng.random() < ANY_VARIANT:
        return outlooks[int(rng.choice(possible))]
    return outlooks[min(possible, key=promises.__getitem__)]
