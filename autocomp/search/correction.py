"""Correct additive scores by the plans that were measured.

The score of an option is a local prediction of its KL; assembled models are worse, by factors that
differ between classes of options (measured on one model: 2 at 4 bits, 4.5 at 2 bits). The
correction is

    log loss(plan) = log (fixed + Σ_{i in plan} κ_i · score_i)
    log κ_i        = log κ₀(class) + effects of (everything, class, role, site, option)

with independent normal priors on the effects; ``fixed`` is the loss of a variant before anything
is compressed: its KL, or the error that the model makes on tasks anyway. What was learned on the
first variant moves the priors of the others. Few plans are measured and there are thousands of
options, so a plan moves mostly the wide, shared effects, and the site effects of what it changed.
Where the loss is no KL, the effect of everything is first of all what a nat of KL costs in it,
so its prior is wide. The posterior mode is found by Gauss-Newton steps in the
space of the measurements,

    x ← P Jᵀ (J P Jᵀ + N)⁻¹ (log loss − f(x) + J x),

with P the prior variances, N the noise variances and J = ∂f/∂x at the current x; a sample from the
linearised posterior follows from a prior sample by Matheron's rule. Both cost milliseconds for a
hundred plans.

Reference: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, chapter 2,
https://gaussianprocess.org/gpml/
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array, hstack

from autocomp.core.metric import positive
from autocomp.core.spec import LayerSpec
from autocomp.search.knapsack import Bools, Floats, Ints, Problem, Solution

SPREAD = {"common": 0.7, "class": 0.7, "role": 0.3, "site": 0.4, "option": 0.2}
"""Prior standard deviations of the effects on log κ."""

UNKNOWN_UNIT = 2.5
"""That of the common effect where the loss is not in the unit of the scores, nats."""

TRANSFER = 1.0
"""That of how far to follow what other studies found, around 1, all the way; 0 is one deviation
off, so that models which share nothing are found out by a few plans."""

DRIFT = 0.25
"""Noise per unit of |log loss − log focus|: far plans say little about the plans that matter."""

_STEPS = 30
_TINY = 1e-30


def option_class(spec: LayerSpec, kind: str = "linear") -> str:
    """Return the class of an option: what its correction is shared with.

    ``w3``, ``sparse``, ``sparse-w4``, ``rank-w8``, ``w3-corrected``, ``w8a8``, ``dense``,
    ``bypass``, ``cache-kivi-k4v4``; with ``embedding-`` or ``head-`` before it for those kinds of
    site. A change of the input makes no class of its own.
    """
    if spec.structure is not None:
        return "bypass"
    if spec.cache is not None:
        return f"cache-{spec.cache.token()}"
    rounded = (("w", spec.quantizer or spec.factor), ("a", spec.activation))
    bits = "".join(f"{side}{part.bits}" for side, part in rounded if hasattr(part, "bits"))
    words = (
        (spec.mask, "sparse"),
        (spec.factor, "rank"),
        (bits or None, bits),
        (spec.residual, "corrected"),
    )
    name = "-".join(word for part, word in words if part is not None) or "dense"
    return f"{kind}-{name}" if kind in ("embedding", "head") else name


def prior_factor(name: str) -> float:
    """Return κ₀ of a class: how much too small the raw score is before anything is measured."""
    found = re.search(r"w(\d+)", name)
    bits = int(found[1]) if found else 16
    if name.startswith(("embedding", "head", "cache")):
        return 1.5
    return {2: 4.5, 3: 2.8}.get(bits, 2.0)


@dataclass(frozen=True, eq=False)
class Evidence:
    """One plan and the loss that was measured for it.

    Args:
        choice: Option of each group, shape (groups,).
        bypassed: Dropped sub-blocks, shape (bypasses,).
        loss: Measured loss.
        relative_error: Standard error of its logarithm, such as 0.02 at the top rung.
    """

    choice: Ints
    bypassed: Bools
    loss: float
    relative_error: float = 0.02


@dataclass(frozen=True, eq=False)
class Effects:
    """Which effects act on which option.

    Options are numbered group by group over the padded score table, the sub-blocks after them.

    Args:
        problem: Uncorrected scores.
        log_prior: log κ₀ of each option, shape (options,).
        design: What an effect adds to log κ of an option, 1 where a plain one acts, shape
            (options, effects), sparse.
        spread: Prior standard deviation of each effect, shape (effects,).
        keys: Kind and name of each effect.
    """

    problem: Problem
    log_prior: Floats
    design: csr_array
    spread: Floats
    keys: tuple[tuple[str, str], ...]

    @classmethod
    def of(
        cls,
        problem: Problem,
        classes: Mapping[str, Sequence[str]],
        roles: Mapping[str, str],
        common: float = SPREAD["common"],
    ) -> "Effects":
        """Return the effects of a problem.

        Args:
            problem: Uncorrected scores.
            classes: Class of each option by group name; sub-blocks are of class ``bypass``.
            roles: Role of each group and sub-block by name; a missing one shares a nameless role.
            common: Prior standard deviation of the effect that all options share.
        """
        width = problem.score.shape[1]
        number: dict[tuple[str, str], int] = {}
        entries: list[tuple[int, int]] = []
        log_prior = np.zeros(problem.score.size + len(problem.bypasses))

        def add(option: int, site: str, name: str) -> None:
            log_prior[option] = np.log(prior_factor(name))
            keys = (("common", ""), ("class", name), ("role", roles.get(site, "")))
            for key in (*keys, ("site", site), ("option", f"{site}/{option}")):
                entries.append((option, number.setdefault(key, len(number))))

        for row, group in enumerate(problem.groups):
            for column in range(len(group.cost)):
                add(row * width + column, group.name, classes[group.name][column])
        for row, bypass in enumerate(problem.bypasses):
            add(problem.score.size + row, bypass.name, "bypass")
        rows, columns = np.array(entries, dtype=np.int64).reshape(-1, 2).T
        design = csr_array(
            (np.ones(len(rows)), (rows, columns)), shape=(len(log_prior), len(number))
        )
        widths = SPREAD | {"common": common}
        spread = np.array([widths[kind] for kind, _ in number])
        return cls(problem, log_prior, design, spread, tuple(number))

    def informed_by(self, other: "Correction") -> "Effects":
        """Return these effects with what was learned on another variant of the model as prior.

        Their priors keep their width. The effects of single options are left out, since the lists
        of two variants may differ.
        """
        known = dict(zip(other.effects.keys, other.mode, strict=True))
        learned = [0.0 if key[0] == "option" else known.get(key, 0.0) for key in self.keys]
        return replace(self, log_prior=self.log_prior + self.design @ np.array(learned))

    def transferred(self, parts: Floats) -> "Effects":
        """Return these effects with the findings of other studies as prior.

        ``log κ₀ ← log κ₀ + Σ_p t_p · parts_p``. How far to follow them is learned with the rest:
        each ``t_p ~ N(1, TRANSFER²)`` becomes an effect.

        Args:
            parts: What they add to log κ of every option, shape (options, parts).
        """
        count = parts.shape[1]
        return replace(
            self,
            log_prior=self.log_prior + parts.sum(axis=1),
            design=csr_array(hstack([self.design, csr_array(parts)])),
            spread=np.concatenate([self.spread, np.full(count, TRANSFER)]),
            keys=(*self.keys, *(("transfer", str(part)) for part in range(count))),
        )

    def row(self, choice: Ints, bypassed: Bools) -> Floats:
        """Return the uncorrected scores of a plan's options, 0 elsewhere, shape (options,)."""
        problem = self.problem
        table = np.zeros_like(problem.score)
        rows = np.flatnonzero(problem.active(bypassed))
        table[rows, choice[rows]] = problem.score[rows, choice[rows]]
        return np.concatenate([table.ravel(), np.where(bypassed, problem.bypass_score, 0.0)])


@dataclass(frozen=True, eq=False)
class Correction:
    """The fitted factors, and the linearised posterior around them.

    Args:
        effects: What the factors belong to.
        mode: Posterior mode of the effects, shape (effects,).
        gain: P Jᵀ (J P Jᵀ + N)⁻¹, shape (effects, plans).
        jacobian: J, shape (plans, effects).
        noise: Standard deviation of each measured log loss, shape (plans,).
        leave_one_out: Root mean square error of log loss when each plan is predicted from the
            others; NaN for fewer than two plans.
    """

    effects: Effects
    mode: Floats
    gain: Floats
    jacobian: Floats
    noise: Floats
    leave_one_out: float

    @cached_property
    def variance(self) -> Floats:
        """Posterior variance of log κ of every option, shape (options,)."""
        design, spread = self.effects.design, self.effects.spread
        explained = (design @ self.gain) * (design @ (spread[:, None] ** 2 * self.jacobian.T))
        prior = design @ spread**2
        return np.asarray(np.maximum(prior - explained.sum(axis=1), 0.0))

    @cached_property
    def factors(self) -> Floats:
        """Expected κ of every option, shape (options,): exp(mode + variance / 2)."""
        return np.asarray(np.exp(self._log(self.mode) + self.variance / 2))

    def sampled_factors(self, rng: np.random.Generator, temperature: float = 1.0) -> Floats:
        """Draw κ of every option from the posterior, shape (options,).

        Args:
            rng: Source of the draw.
            temperature: Scales the deviation from the mode; 0 gives the expected factors.
        """
        prior = rng.normal(size=len(self.mode)) * self.effects.spread
        noise = rng.normal(size=len(self.noise)) * self.noise
        deviation = prior - self.gain @ (self.jacobian @ prior + noise)
        rest = (1 - temperature**2) * self.variance / 2
        return np.asarray(np.exp(self._log(self.mode + temperature * deviation) + rest))

    def _log(self, values: Floats) -> Floats:
        return np.asarray(self.effects.log_prior + self.effects.design @ values)

    def apply(self, factors: Floats | None = None) -> Problem:
        """Return the problem with scores times the expected factors, or times the ones given."""
        problem = self.effects.problem
        factors = self.factors if factors is None else factors
        table = factors[: problem.score.size].reshape(problem.score.shape)
        return problem.with_scores(
            problem.score * table, problem.bypass_score * factors[problem.score.size :]
        )

    def predict(self, solution: Solution) -> float:
        """Return the predicted loss of a plan: that of the posterior mode."""
        parts = self._parts(solution.choice, solution.bypassed)
        return self.effects.problem.fixed_score + float(parts.sum())

    def class_shares(self, choice: Ints, bypassed: Bools) -> dict[str, float]:
        """Return which share of a plan's predicted loss each class of option has; they sum to 1.

        What is lost before anything is compressed has the class ``uncompressed``.
        """
        parts, fixed = self._parts(choice, bypassed), self.effects.problem.fixed_score
        by_effect = parts @ self.effects.design
        total = fixed + float(parts.sum()) + _TINY
        shares = {
            name: float(value) / total
            for (kind, name), value in zip(self.effects.keys, by_effect, strict=True)
            if kind == "class" and value > 0
        }
        return shares | ({"uncompressed": fixed / total} if fixed else {})

    def _parts(self, choice: Ints, bypassed: Bools) -> Floats:
        return self.effects.row(choice, bypassed) * np.exp(self._log(self.mode))


def fit(effects: Effects, plans: Sequence[Evidence], focus: float | None = None) -> Correction:
    """Fit the factors to measured plans.

    Args:
        effects: What may be corrected.
        plans: Measured plans; those without a finite loss are left out.
        focus: Loss near which predictions should be right; the lowest measured one by default.
    """
    plans = [plan for plan in plans if np.isfinite(plan.loss)]
    size = len(effects.spread)
    if not plans:
        none = np.zeros((0, size))
        return Correction(effects, np.zeros(size), none.T, none, np.zeros(0), float("nan"))
    target = np.log([positive(plan.loss) for plan in plans])
    centre = target.min() if focus is None else np.log(positive(focus))
    error = np.array([plan.relative_error for plan in plans])
    noise = np.hypot(error, DRIFT * np.abs(target - centre))
    rows = np.stack([effects.row(plan.choice, plan.bypassed) for plan in plans])
    used = np.flatnonzero(rows.any(axis=0))  # what no plan takes is in no measured loss
    acting = np.unique(effects.design[used].indices)
    rows, design = rows[:, used], effects.design[used][:, acting]
    log_prior, spread = effects.log_prior[used], effects.spread[acting]
    variance = spread**2

    def model(values: Floats) -> tuple[Floats, Floats]:
        parts = rows * np.exp(log_prior + design @ values)
        total = effects.problem.fixed_score + parts.sum(axis=1) + _TINY
        return np.log(total), np.asarray((parts / total[:, None]) @ design)

    def loss(values: Floats, predicted: Floats) -> float:
        residual = (target - predicted) / noise
        return float(residual @ residual + (values / spread) @ (values / spread))

    mode = np.zeros(len(acting))
    predicted, jacobian = model(mode)
    best = loss(mode, predicted)
    for _ in range(_STEPS):
        covariance = jacobian * variance @ jacobian.T + np.diag(noise**2)
        goal = target - predicted + jacobian @ mode
        step = variance * (jacobian.T @ cho_solve(cho_factor(covariance), goal)) - mode
        for shrink in (1.0, 0.5, 0.25, 0.1, 0.02):
            trial = mode + shrink * step
            trial_predicted, trial_jacobian = model(trial)
            value = loss(trial, trial_predicted)
            if value < best:
                break
        else:
            break
        done = best - value < 1e-6 * best
        mode, predicted, jacobian, best = trial, trial_predicted, trial_jacobian, value
        if done:
            break
    covariance = jacobian * variance @ jacobian.T + np.diag(noise**2)
    inverse = np.linalg.inv(covariance)
    goal = target - predicted + jacobian @ mode
    errors = (inverse @ goal) / np.diag(inverse)
    every, each = np.zeros(size), np.zeros((2, size, len(plans)))
    every[acting] = mode
    each[0, acting], each[1, acting] = variance[:, None] * (jacobian.T @ inverse), jacobian.T
    return Correction(
        effects,
        every,
        each[0],
        each[1].T,
        noise,
        float(np.sqrt(np.mean(errors**2))) if len(plans) > 1 else float("nan"),
    )
