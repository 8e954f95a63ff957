"""The Pareto front of measured plans: loss against bytes, both minimised."""

from collections.abc import Iterable
from dataclasses import dataclass

import moocore
import numpy as np

from autocomp.core.errors import InfeasibleError


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One measured plan.

    Args:
        number: Trial number.
        loss: The study's metric, such as KL to the base in nats a token.
        weight_bytes: Size of the weight file, bytes.
        feasible: Whether every constraint holds.
    """

    number: int
    loss: float
    weight_bytes: int
    feasible: bool = True


@dataclass(frozen=True, slots=True)
class Front:
    """The feasible points that no feasible point dominates, smallest file first.

    A point dominates another when it is no worse in both objectives and better in one, so equal
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
        chosen.sort(key=lambda point: (point.weight_bytes, point.loss, point.number))
        return cls(tuple(chosen))

    def hypervolume(self, loss: float, weight_bytes: float) -> float:
        """Return the area between the front and a reference point, in losses times bytes.

        Points beyond the reference count nothing, so a fixed reference makes fronts comparable:
        adding a point never lowers the value.

        Args:
            loss: Reference loss.
            weight_bytes: Reference size.

        Reference: Guerreiro, Fonseca, Paquete 2021, https://arxiv.org/abs/2005.00515.
        """
        if not self.points:
            return 0.0
        reference = (loss, weight_bytes)
        return float(moocore.hypervolume(_values(self.points), ref=reference))

    def knee(self) -> FrontPoint:
        """Return the point where more bytes stop paying off.

        With both objectives scaled to [0, 1] over the front, it is the point furthest below the
        chord that joins the two ends, ``argmax 1 − size − loss``; the smallest of equals.

        Raises:
            InfeasibleError: If the front is empty.
        """
        if not self.points:
            raise InfeasibleError("the front is empty, so it has no knee.")
        values = _values(self.points)
        span = np.ptp(values, axis=0)
        scaled = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
        return self.points[int(np.argmax(1.0 - scaled.sum(axis=1)))]

    def under(self, max_bytes: float) -> FrontPoint:
        """Return the point with the lowest loss of at most ``max_bytes``.

        Raises:
            InfeasibleError: If no point is that small; the message names the smallest.
        """
        small = [point for point in self.points if point.weight_bytes <= max_bytes]
        if not small:
            smallest = f"; the smallest has {self.points[0].weight_bytes}" if self.points else ""
            raise InfeasibleError(f"no measured plan has at most {max_bytes:.0f} bytes{smallest}.")
        return min(small, key=lambda point: (point.loss, point.weight_bytes, point.number))


def _values(points: Iterable[FrontPoint]) -> np.ndarray:
    """Return (points, 2) float64: loss, bytes."""
    return np.array([(point.loss, point.weight_bytes) for point in points], dtype=np.float64)
