"""How a front grew: the hypervolume after every told trial, against one reference point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autocomp.core.cost import LIMITS
from autocomp.search.front import Front, FrontPoint
from autocomp.search.records import TrialRecord
from autocomp.search.study import Study

UNIFORM = "uniform"


@dataclass(frozen=True)
class HypervolumeCurve:
    """The hypervolume of a study's front after each of its trials.

    Args:
        metric: Name of the loss.
        cost: Name of the cost.
        reference: (loss, cost) of the reference point.
        trials: Numbers of the finished trials, in the order of their proposals.
        values: Hypervolume after each of them, losses times costs.
    """

    metric: str
    cost: str
    reference: tuple[float, float]
    trials: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The values in shares of the box between the reference and (0, 0)."""
        box = self.reference[0] * self.reference[1]
        return tuple(value / box for value in self.values)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: the reference by name, and one row a trial."""
        return {
            "reference": dict(zip((self.metric, self.cost), self.reference, strict=True)),
            "by_trial": [
                {"trial": number, "hypervolume": value, "share": share}
                for number, value, share in zip(self.trials, self.values, self.shares, strict=True)
            ],
        }


def hypervolumes(points: Sequence[FrontPoint], reference: Sequence[float]) -> tuple[float, ...]:
    """Return the hypervolume of the front of the first 1, 2, …, n points.

    Args:
        points: In the order in which they came; of any number of objectives.
        reference: One value an objective, the loss first.
    """
    front, value, found = Front(()), 0.0, []
    for point in points:
        grown = Front.from_points((*front.points, point))
        if grown != front:
            front, value = grown, grown.hypervolume(reference)
        found.append(value)
    return tuple(found)


def reference_point(
    records: Sequence[TrialRecord], limit: float | None
) -> tuple[float, float] | None:
    """Return what a study's hypervolume is measured against; it stays once baselines are told.

    The loss is the worst of the uniform baselines within the limits, the cost the limit on what is
    minimised, or without one the largest of those baselines. A study without baselines takes the
    first plan that was measured to the top.

    Args:
        records: Trials of the study.
        limit: Limit on the cost that is minimised; ``None`` without one.

    Returns:
        (loss, cost); ``None`` before anything was measured.
    """
    measured = [(r.logical, r.loss, r.cost, r.origin) for r in records if r.feasible]
    known = sorted(row for row in measured if row[1] is not None)
    chosen = [row for row in known if row[3] == UNIFORM] or known[:1]
    if not chosen:
        return None
    worst = max(loss for _, loss, _, _ in chosen if loss is not None)
    return worst, max(cost for _, _, cost, _ in chosen) if limit is None else limit


def curve_of(study: Study) -> HypervolumeCurve | None:
    """Return the curve of a study; ``None`` before anything was measured."""
    limit = study.fingerprint.get(f"budget.{LIMITS[study.cost]}")
    return curve(study.records(), study.metric, study.cost, limit)


def curve(
    records: Sequence[TrialRecord], metric: str, cost: str, limit: float | None = None
) -> HypervolumeCurve | None:
    """Return the curve of some trials; ``None`` before anything was measured.

    Args:
        records: Trials of a study, in the order of their proposals.
        metric: Name of the loss.
        cost: Name of the cost that they minimise.
        limit: Limit on it; ``None`` without one.
    """
    reference = reference_point(records, limit)
    if reference is None:
        return None
    told = [record for record in records if record.state != "RUNNING"]
    points = [
        FrontPoint(r.number, (r.loss or 0.0, r.cost), r.feasible and r.loss is not None)
        for r in told
    ]
    return HypervolumeCurve(
        metric,
        cost,
        reference,
        tuple(record.number for record in told),
        hypervolumes(points, reference),
    )
