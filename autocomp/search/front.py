"""The Pareto front of measured plans: a loss against one cost or more, all minimised."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import moocore
import numpy as np

from autocomp.core.errors import InfeasibleError


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One measured plan.

    Args:
        number: Trial number.
        values: The objectives: the loss, such as KL to the base in nats a token, then costs, such
            as the bytes of the weight file.
        feasible: Whether every constraint holds.
    """

    number: int
    values: tuple[float, ...]
    feasible: bool = True

    @property
    def loss(self) -> float:
        """The first objective."""
        return self.values[0]

    @property
    def cost(self) -> float:
        """The second objective."""
        return self.values[1]


@dataclass(frozen=True, slots=True)
class Front:
    """The feasible points that no feasible point dominates, cheapest first.

    A point dominates another when it is no worse in every objective and better in one, so equal
    points all stay, as in Optuna's ``best_trials``.
    """

    points: tuple[FrontPoint, ...]

    @classmethod
    def from_points(cls, points: Iterable[FrontPoint]) -> "Front":
        """Return the front of any points, in whatever order they come."""
        feasible = [point for point in points if point.feasible]
        if not feasible:
            return cls(())
        kept = moocore.is_nondominated(_values(feasible), keep_weakly=True)
        chosen = [point for point, keep in zip(feasible, kept, strict=True) if keep]
        chosen.sort(key=lambda point: (*point.values[1:], point.loss, point.number))
        return cls(tuple(chosen))

    def hypervolume(self, reference: Sequence[float]) -> float:
        """Return the volume between the front and a reference point, in products of objectives.

        Points beyond the reference count nothing, so a fixed reference makes fronts comparable:
        adding a point never lowers the value.

        Args:
            reference: One value an objective, the loss first.

        Reference: Guerreiro, Fonseca, Paquete 2021, https://arxiv.org/abs/2005.00515.
        """
        if not self.points:
            return 0.0
        return float(moocore.hypervolume(_values(self.points), ref=tuple(reference)))

    def knee(self) -> FrontPoint:
        """Return the point where spending more stops paying off.

        With all objectives scaled to [0, 1] over the front, it is the point furthest below the
        plane through its ends (of two objectives, the chord), ``argmax 1 − Σ objectives``; the
        cheapest of equals.

        Raises:
            InfeasibleError: If the front is empty.
        """
        if not self.points:
            raise InfeasibleError("the front is empty, so it has no knee.")
        values = _values(self.points)
        span = np.ptp(values, axis=0)
        scaled = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
        return self.points[int(np.argmax(1.0 - scaled.sum(axis=1)))]

    def under(self, limit: float) -> FrontPoint:
        """Return the point with the lowest loss that costs at most ``limit``.

        Raises:
            InfeasibleError: If no point is that cheap; the message names the cheapest.
        """
        fitting = [point for point in self.points if point.cost <= limit]
        if not fitting:
            cheapest = f"; the smallest has {self.points[0].cost:.15g}" if self.points else ""
            raise InfeasibleError(f"no measured plan has at most {limit:.15g}{cheapest}.")
        return min(fitting, key=lambda point: (point.loss, point.cost, point.number))


def _values(points: Iterable[FrontPoint]) -> np.ndarray:
    """Return (points, objectives) float64: the loss, then costs."""
    return np.array([point.values for point in points], dtype=np.float64)
