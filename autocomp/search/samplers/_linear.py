"""The knapsack around one measured plan: first-order changes from its gradient, and curvature.

Scores are made around the dense model and add up what single sites do. Near a plan that was
measured, the gradient of its own loss says more: it knows what all the other compressed sites
have done. With the plan at option ``c`` of a site, choosing ``o`` changes the loss by

    Δ(o) = α · ⟨∂loss/∂Ŵ, Ŵ_o − Ŵ_c⟩ + μ_s · κ · ½ tr((Ŵ_o − Ŵ_c)ᵀ G (Ŵ_o − Ŵ_c) H),

where ``κ`` is what measured plans say of the site's options. What is no change of a weight (a
cache, a rounded input, what lies in a bypassed sub-block) changes it by the difference of its
corrected scores. The sum over sites is trusted for few changes at a time, and curvature less than
the gradient, for the best step is made of the sites whose curvature is underestimated: ``α`` and
the ``μ_s`` of every site are learned from the steps that were measured, in a linear Gaussian
model, and drawn from its posterior where a step failed. Where they leave nothing to gain, ``μ`` is
halved until there is a step to learn from.

Gradients of earlier plans on other parts of the text are averaged with the newest, halved in
weight a plan: at a site that did not change since, their differences of options hold as they are,
up to what other sites did.

Reference: Conn, Gould, Toint 2000, Trust Region Methods,
https://doi.org/10.1137/1.9780898719857; Byrd, Chin, Nocedal, Wu 2012,
https://doi.org/10.1007/s10107-012-0572-5 (more text where a gradient is too noisy).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autocomp.search.ask import Linearisation, Told
from autocomp.search.context import SearchContext
from autocomp.search.correction import Correction
from autocomp.search.problem import Floats, Problem, Solution

LINEAR = "linear"
"""Origin of a step by the gradient."""

SLOPE, SLOPE_SPREAD = 1.0, 0.1
"""Prior of α: mean and standard deviation."""

BEND, BEND_SPREAD, SITE_SPREAD = 2.0, 0.5, 0.4
"""Prior of μ: mean, and standard deviations of what all sites share and of each site's own."""

TEMPERATURE = 0.5
"""Width of draws: the best of many options is the one with the luckiest draw."""

STEP_NOISE, LOSS_NOISE = 0.05, 3e-3
"""Noise of a step's change: a share of its first-order part, and of the loss."""


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Changes of the loss around a plan.

    Args:
        base: Costs and limits; forbidden options.
        first: First-order change of each option, shape (groups, options), 0 where there is none.
        curvature: Second-order change, same shape.
        plain: Change of options that have no gradient, same shape.
        bypass_first: First-order change of dropping each sub-block, shape (bypasses,).
        bypass_plain: The rest of it, shape (bypasses,).
    """

    base: Problem
    first: Floats
    curvature: Floats
    plain: Floats
    bypass_first: Floats
    bypass_plain: Floats

    def problem(self, trust: Floats) -> Problem:
        """Return the knapsack for (α, μ of each group); the plan itself scores 0."""
        score = trust[0] * self.first + trust[1:, None] * self.curvature + self.plain
        score = np.where(np.isfinite(self.base.score), score, np.inf)
        bypass_score = trust[0] * self.bypass_first + self.bypass_plain
        return replace(self.base.with_scores(score, bypass_score), fixed_score=0.0)

    def terms(self, solution: Solution) -> dict[str, Any]:
        """Return the parts of a solution's change: first order, curvature a group, the rest."""
        rows = np.flatnonzero(self.base.active(solution.bypassed))
        taken = rows, solution.choice[rows]
        dropped, bent = solution.bypassed, self.curvature[taken]
        return {
            "first": float(self.first[taken].sum() + self.bypass_first[dropped].sum()),
            "curvature": {str(rows[i]): float(bent[i]) for i in np.flatnonzero(bent)},
            "plain": float(self.plain[taken].sum() + self.bypass_plain[dropped].sum()),
        }


@dataclass(frozen=True, eq=False)
class Gradient:
    """A linearisation and where it was taken.

    Args:
        around: The first-order changes.
        plan: The plan that they are changes from.
        weight: Its weight in the average.
    """

    around: Linearisation
    plan: Solution
    weight: float = 1.0


def neighbourhood(
    context: SearchContext,
    correction: Correction,
    centre: Solution,
    gradients: Sequence[Gradient],
) -> Neighbourhood:
    """Return the changes around a plan.

    Args:
        context: The plan's variant.
        correction: Fitted to what was measured.
        centre: The plan.
        gradients: At the plan, and at others near it.
    """
    raw, corrected = context.problem, correction.apply()
    sites = {group[0]: group for group in context.space.sketch.groups}
    first, curvature, plain = (np.zeros_like(raw.score) for _ in range(3))
    active = raw.active(centre.bypassed)
    for row, group in enumerate(raw.groups):
        own, count = int(centre.choice[row]), len(group.cost)
        scores = corrected.score[row, :count]
        if not active[row]:
            plain[row, :count] = scores
            continue
        tokens = [spec.token() for spec in context.space.lists[group.name]]
        useful = [g for g in gradients if int(g.plan.choice[row]) == own]
        slopes = _slopes(useful, sites[group.name], tokens)
        known = np.isfinite(slopes) & np.isfinite(slopes[own])
        first[row, :count] = np.where(known, slopes, 0.0)
        pairs = _between(context, row, tokens)
        moved = pairs.diagonal() + pairs[own, own] - 2 * pairs[own]
        bend = _ratio(scores, pairs.diagonal()) * np.maximum(moved, 0.0)
        curvature[row, :count] = np.where(known, bend, 0.0)
        plain[row, :count] = np.where(known, 0.0, scores - scores[own])
    bypass_first = np.array([_drop(gradients, bypass.name) for bypass in raw.bypasses])
    bypass_plain = corrected.bypass_score.copy()
    for index, bypass in enumerate(raw.bypasses):
        members = list(bypass.members)
        if centre.bypassed[index]:
            # To keep it takes off what the bypass costs, and adds what its members do.
            plain[members[:1]] -= bypass_plain[index]
            bypass_plain[index] = bypass_first[index] = 0.0
        elif not np.isfinite(bypass_first[index]):
            bypass_first[index] = 0.0
            bypass_plain[index] -= corrected.score[members, centre.choice[members]].sum()
    return Neighbourhood(raw, first, curvature, plain, bypass_first, bypass_plain)


def _ratio(corrected: Floats, alone: Floats) -> Floats:
    """Return κ of every option: what it costs over its second-order term, 1 where that is 0."""
    some = np.isfinite(corrected) & (alone > 0)
    return np.divide(corrected, alone, out=np.ones_like(alone), where=some)


def _between(context: SearchContext, row: int, tokens: Sequence[str]) -> Floats:
    """Return ``½ tr(E_oᵀ G E_p H)`` of a group's options, shape (options, options).

    Without it the errors of two options are taken to be unrelated, so that only what each costs
    alone is left.
    """
    group = context.problem.groups[row]
    sites = next(found for found in context.space.sketch.groups if found[0] == group.name)
    alone = np.diag(np.where(np.isfinite(group.score), group.score, 0.0))
    tables = [context.pairs.get(site, {}) for site in sites]
    if any(token not in table for table in tables for token in tokens):
        return alone
    found = [[[table[o][p] for p in tokens] for o in tokens] for table in tables]
    return np.asarray(np.sum(found, axis=0))


def _slopes(gradients: Sequence[Gradient], sites: Sequence[str], tokens: Sequence[str]) -> Floats:
    """Return the mean first-order change of each option of a group; infinite where unknown."""
    if not gradients:
        return np.full(len(tokens), np.inf)
    rows = [
        [sum(g.around.options.get(site, {}).get(t, np.inf) for site in sites) for t in tokens]
        for g in gradients
    ]
    return np.asarray(np.average(rows, axis=0, weights=[g.weight for g in gradients]))


def _drop(gradients: Sequence[Gradient], name: str) -> float:
    """Return the mean first-order change of dropping a sub-block; infinite where unknown."""
    some = [(g.around.drop[name], g.weight) for g in gradients if name in g.around.drop]
    if not some:
        return float("inf")
    values, weights = zip(*some, strict=True)
    return float(np.average(values, weights=weights))


@dataclass(frozen=True, eq=False)
class Trust:
    """What the measured steps of a variant say of (α, μ of each group).

    Args:
        mean: Posterior mean, shape (1 + groups,).
        covariance: Posterior covariance.
    """

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, told: Sequence[Told], groups: int) -> "Trust":
        """Return the posterior of a linear Gaussian model.

        Args:
            told: Trials of the variant; steps stopped below the top rung are left out.
            groups: Number of groups.
        """
        mean = np.full(1 + groups, BEND)
        covariance = np.full((1 + groups, 1 + groups), BEND_SPREAD**2)
        covariance[1:, 1:] += SITE_SPREAD**2 * np.eye(groups)
        mean[0], covariance[0], covariance[:, 0] = SLOPE, 0.0, 0.0
        covariance[0, 0] = SLOPE_SPREAD**2
        done = [t for t in told if t.origin == LINEAR and t.state == "COMPLETE"]
        done = [t for t in done if t.loss is not None]
        if not done:
            return cls(mean, covariance)
        design = np.zeros((len(done), 1 + groups))
        change, noise = np.zeros(len(done)), np.zeros(len(done))
        for row, trial in enumerate(done):
            about = trial.details
            design[row, 0] = about["first"]
            for group, bend in about["curvature"].items():
                design[row, 1 + int(group)] = bend
            change[row] = (trial.loss or 0.0) - about["from"] - about["plain"]
            noise[row] = STEP_NOISE * abs(about["first"]) + LOSS_NOISE * abs(about["from"]) + 1e-12
        seen = design @ covariance
        gain = np.linalg.solve(seen @ design.T + np.diag(noise**2), seen).T
        return cls(mean + gain @ (change - design @ mean), covariance - gain @ seen)

    def draw(self, rng: np.random.Generator) -> Floats:
        """Return a draw from the posterior at half its width; a μ below 0 is 0."""
        width = TEMPERATURE**2 * self.covariance
        drawn = rng.multivariate_normal(self.mean, width, method="eigh")
        return np.asarray(np.maximum(drawn, 0.0))


@dataclass(frozen=True)
class TrustRegion:
    """How many groups a step may change.

    Args:
        start: Groups of the first step.
        least: Fewest groups worth a step.
        most: Most groups.
    """

    start: int
    least: int
    most: int

    @classmethod
    def of(cls, groups: int) -> "TrustRegion":
        """Return the region for a number of groups: a twentieth at first, at most a fifth."""
        start = max(2, round(groups / 20))
        return cls(start, max(1, start // 4), max(2, round(groups / 5)))

    def size(self, steps: Sequence[Told]) -> int:
        """Return the size of the next step; 0 when smaller ones were tried in vain.

        It halves when a step was no better than the plan it started from, and grows by a half when
        it kept at least half of its promise.

        Args:
            steps: Steps at the same budget in logical order, running ones too.
        """
        if not steps:
            return self.start
        trial = steps[-1]
        size: int = trial.details["size"]
        gained = -np.inf
        if trial.state == "COMPLETE" and trial.loss is not None:
            gained = trial.details["from"] - trial.loss
        if gained >= 0.5 * trial.details["promise"]:
            return min(self.most, size * 3 // 2 + 1)
        if gained <= 0:
            size //= 2
        return size if size >= self.least else 0


Read = tuple[int, int]
"""A gradient that was asked for: number of the trial that it is around, part of the text."""

KEPT, AROUND = 4, 2


def to_read(steps: Sequence[Told], centre: int, parts: int, *, more: bool) -> tuple[Read, ...]:
    """Return the gradients that the next step uses, newest first.

    A new plan gets a part of the text that was not read for the last ones. Where steps no longer
    help, the plan gets a second one.

    Args:
        steps: Steps at the same budget in logical order.
        centre: Number of the trial that the step starts from.
        parts: How many parts there are.
        more: Whether steps from these gradients were tried in vain.
    """
    read = [(int(trial), int(part)) for trial, part in steps[-1].details["read"]] if steps else []
    mine = sum(trial == centre for trial, _ in read)
    if mine and (not more or mine >= min(AROUND, parts)):
        return tuple(read)
    following = (read[0][1] + 1) % parts if read else 0
    return ((centre, following), *read)[:KEPT]


def weights(read: Sequence[Read]) -> list[float]:
    """Return the weight of each gradient: 1 at the newest plan, halved a plan back."""
    order = list(dict.fromkeys(trial for trial, _ in read))
    return [0.5 ** order.index(trial) for trial, _ in read]
