"""Smooth losses for the plans of a variant that a study did not measure.

    log loss(x) = log f(x) + σ(x)·z(x),      σ(x) = c·√(e² + (d·(log f(x) − log best))²)

* f is the study's own additive model: scores times the factors that
  :func:`~autocomp.search.correction.fit` finds on its records;
* σ is the noise that the fit expects, e at the best loss and more by the drift d away from it,
  times the c at which the leave-one-out errors of the records have a root mean square of 1: a
  stand-in is as wrong as the study's predictions of its own trials were;
* z is a draw of a Gaussian field of unit variance: a sum of products of pairs of decisions, which
  additive scores cannot express. Two plans that treat a share s of the groups alike correlate by
  s². It goes through the records, to a nugget of 1 %, so that plans next to a measured one lose
  about the same.

Reference: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, chapter 2 and
section 5.4.2, https://gaussianprocess.org/gpml/
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from autocomp.core.metric import positive
from autocomp.core.seeds import SeedTree
from autocomp.search.context import SearchContext
from autocomp.search.correction import DRIFT, Correction, Evidence, fit
from autocomp.search.knapsack import Floats, Ints, Solution
from autocomp.search.records import TrialRecord

PAIRS = 32
NUGGET = 0.01


class StandIn:
    """The losses of a variant's plans that were not measured.

    Args:
        context: The variant.
        measured: Its trials that were measured to the top rung.
        prior: The correction of the first variant, for any other.
        seed: Where the field is drawn from.
    """

    def __init__(
        self,
        context: SearchContext,
        measured: Sequence[TrialRecord],
        prior: Correction | None,
        seed: SeedTree,
    ) -> None:
        self._context = context
        groups, options = context.problem.score.shape
        shape = (2, PAIRS, groups, options + 1)  # the last stands for a group that is dropped
        self._tables = seed.child("tables").numpy().normal(size=shape) / math.sqrt(groups)
        self._direction = directions(seed.child("level"), 1)[0]
        solutions = [self.solution(record.params) for record in measured]
        losses = [float(record.loss or 0.0) for record in measured]
        plans = [
            Evidence(solution.choice, solution.bypassed, loss)
            for solution, loss in zip(solutions, losses, strict=True)
        ]
        effects = context.effects if prior is None else context.effects.informed_by(prior)
        self.correction = fit(effects, plans)
        logs = np.log([positive(loss) for loss in losses])
        predicted = np.array([self._log_predicted(solution) for solution in solutions])
        self._best = float(logs.min(initial=np.inf))
        self._states = np.array([self._state(solution) for solution in solutions])
        self._residuals = logs - predicted
        self._widths = np.array([self._width(value) for value in predicted])
        self._drawn = np.array(
            [float(self.features(solution) @ self._direction) for solution in solutions]
        )
        self.errors = _left_out(self.correction, self._residuals)
        self.calibrate(1.0)

    @property
    def standardised(self) -> Floats:
        """Leave-one-out errors of log losses over the noise that is expected, shape (records,)."""
        return np.asarray(self.errors / self._widths)

    def calibrate(self, scale: float) -> None:
        """Take c, and make the field go through the records."""
        self._scale = scale
        kernel = np.array([self._alike(state) for state in self._states])
        wanted = self._residuals / (scale * self._widths) - self._drawn
        if len(wanted):
            self._weights = np.linalg.solve(kernel + NUGGET * np.eye(len(kernel)), wanted)

    def solution(self, params: Mapping[str, int]) -> Solution:
        """Return what the parameters of a plan decide."""
        return self._context.problem.solution(*self._context.decisions(params))

    def features(self, solution: Solution) -> Floats:
        """Return products of pairs of decisions, shape (pairs,).

        Over draws of the field they are uncorrelated, of unit variance, and correlate by s² with
        those of another plan.
        """
        state = self._state(solution)
        one, other = self._tables[:, :, np.arange(len(state)), state].sum(axis=2)
        return np.asarray(one * other)

    def level(self, solution: Solution) -> float:
        """Return the loss of a plan."""
        predicted = self._log_predicted(solution)
        drawn = float(self.features(solution) @ self._direction)
        if len(self._states):
            drawn += float(self._alike(self._state(solution)) @ self._weights)
        return math.exp(predicted + self._scale * self._width(predicted) * drawn)

    def _state(self, solution: Solution) -> Ints:
        """Return the option of every group, -1 where it is dropped."""
        return np.where(self._context.problem.active(solution.bypassed), solution.choice, -1)

    def _alike(self, state: Ints) -> Floats:
        """Return s² of a plan and every record."""
        return np.asarray((self._states == state).mean(axis=1) ** 2)

    def _width(self, predicted: float) -> float:
        """Return the noise of a log loss; that of the best one where nothing was measured."""
        away = predicted - self._best if math.isfinite(self._best) else 0.0
        return math.hypot(Evidence.relative_error, DRIFT * away)

    def _log_predicted(self, solution: Solution) -> float:
        return math.log(positive(self.correction.predict(solution)))


def directions(seed: SeedTree, count: int) -> Floats:
    """Return unit directions in the space of the features, shape (count, pairs)."""
    return seed.numpy().normal(size=(count, PAIRS)) / math.sqrt(PAIRS)


def _left_out(correction: Correction, residuals: Floats) -> Floats:
    """Return the error of each log loss when it is predicted from the others, shape (plans,).

    They are ``K⁻¹g / diag K⁻¹`` with ``K = J P Jᵀ + N`` and ``g`` what the linearised model leaves
    at the prior mean; see :mod:`autocomp.search.correction`.
    """
    jacobian, variance = correction.jacobian, correction.effects.spread**2
    covariance = jacobian * variance @ jacobian.T + np.diag(correction.noise**2)
    inverse = np.linalg.inv(covariance)
    goal = residuals + jacobian @ correction.mode
    return np.asarray((inverse @ goal) / np.diag(inverse))
