"""The front over the loss and every cost that a study recorded, with its hypervolume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from autocomp.core.cost import WEIGHT_BYTES
from autocomp.search.front import Front, FrontPoint
from autocomp.search.hypervolume import UNIFORM
from autocomp.search.records import TrialRecord


@dataclass(frozen=True, slots=True)
class JointFront:
    """The trials that none beats in the loss and in every cost.

    Args:
        names: Of the objectives, the loss first.
        reference: One value an objective: the worst of the uniform baselines, and of a cost its
            limit, where it has one.
        trials: Numbers of the trials, smallest file first.
        hypervolume: Between them and the reference, in products of the objectives.
    """

    names: tuple[str, ...]
    reference: tuple[float, ...]
    trials: tuple[int, ...]
    hypervolume: float

    @property
    def share(self) -> float:
        """The hypervolume as a share of the box between the reference and 0."""
        return self.hypervolume / prod(self.reference)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, the reference by name."""
        return {
            "reference": dict(zip(self.names, self.reference, strict=True)),
            "trials": list(self.trials),
            "hypervolume": self.hypervolume,
            "share": self.share,
        }


def joint_front(
    records: Sequence[TrialRecord], metric: str, limits: Mapping[str, float]
) -> JointFront | None:
    """Return the front over all costs that every measured trial has.

    Args:
        records: Trials of a study.
        metric: Name of the loss.
        limits: Limits by name of the cost.

    Returns:
        ``None`` before anything was measured, or where there is one cost.
    """
    measured = [record for record in records if record.feasible and record.loss is not None]
    if not measured:
        return None
    shared = set.intersection(*({WEIGHT_BYTES, *record.costs} for record in measured))
    costs = (WEIGHT_BYTES, *sorted(shared - {WEIGHT_BYTES}))
    if len(costs) == 1:
        return None
    values = {r.number: (r.loss or 0.0, *(r.cost_of(name) for name in costs)) for r in measured}
    front = Front.from_points(FrontPoint(number, found) for number, found in values.items())
    baselines = [values[r.number] for r in measured if r.origin == UNIFORM]
    worst = [max(column) for column in zip(*(baselines or values.values()), strict=True)]
    bounds = [limits.get(name, most) for name, most in zip(costs, worst[1:], strict=True)]
    reference = (worst[0], *bounds)
    return JointFront(
        (metric, *costs),
        reference,
        tuple(point.number for point in front.points),
        front.hypervolume(reference),
    )
