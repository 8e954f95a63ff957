"""A study priced anew: the same trials, with the cost of another device, context or batch.

Nothing is measured again. Losses, limits and finished artefacts stay; the front is that of the
losses and the new cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autocomp.config import StudyConfig
from autocomp.core.cost import TIMES
from autocomp.core.sketch import Sketch
from autocomp.core.variant import BASE
from autocomp.cost import Workload, cost_model
from autocomp.evaluate.efficiency import efficiency, speed
from autocomp.search.front import Front, FrontPoint
from autocomp.search.records import TrialRecord
from autocomp.search.stored import stored_setup
from autocomp.search.study import Study


@dataclass(frozen=True)
class Repriced:
    """Trials of a study with a new cost.

    Args:
        records: All trials, minimising the new cost.
        cost: Its name.
        source: Where it comes from.
        front: Numbers of the trials that are not dominated.
        efficiency: ``trial`` and the JSON of its
            :class:`~autocomp.evaluate.record.Efficiency`, a row a finished plan.
    """

    records: tuple[TrialRecord, ...]
    cost: str
    source: str
    front: tuple[int, ...]
    efficiency: tuple[Mapping[str, Any], ...]


def reprice(study: Study, config: StudyConfig, cost: str, workload: Workload) -> Repriced:
    """Return the trials of a study with another cost; no weights are read.

    Args:
        study: The study.
        config: Its configuration.
        cost: Name of a cost.
        workload: What it is of.

    Raises:
        ConfigError: If the cost, the device or the model is unknown, or nothing was measured.
    """
    records = study.records()
    names = dict.fromkeys((BASE, *(record.plan.variant for record in records)))
    sketches = {name: stored_setup(config, study, name).sketch for name in names}
    models = {name: cost_model(cost, sketch, workload) for name, sketch in sketches.items()}

    def priced(record: TrialRecord) -> TrialRecord:
        plan = record.plan
        model = models[plan.variant]
        kept = {name: value for name, value in record.costs.items() if name not in TIMES}
        source = {name: record.source_of(name) for name in kept}
        return replace(
            record,
            costs=kept | {cost: model.predict(plan) * model.tick},
            sources=source | {cost: model.source_of(plan)},
            minimised=cost,
        )

    found = tuple(map(priced, records))
    front = Front.from_points(
        FrontPoint(r.number, (r.loss, r.cost)) for r in found if r.feasible and r.loss is not None
    )
    return Repriced(
        records=found,
        cost=cost,
        source=workload.times if cost in TIMES else models[BASE].source,
        front=tuple(point.number for point in front.points),
        efficiency=tuple(_efficiency_rows(found, sketches, workload)),
    )


def _efficiency_rows(
    records: Sequence[TrialRecord], sketches: Mapping[str, Sketch], workload: Workload
) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.finished is None:
            continue
        sketch, plan, base = sketches[record.plan.variant], record.plan, sketches[BASE]
        figures = efficiency(sketch, plan, base, context=workload.context)
        timed = replace(figures, speed=speed(sketch, plan, base, workload))
        rows.append({"trial": record.number, **timed.to_json()})
    return rows


def finished_efficiency(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Return the efficiency of finished plans as it was recorded, a row each."""
    rows = []
    for record in records:
        measured = () if record.finished is None else record.finished.measurements
        found = next((m["efficiency"] for m in measured if m.get("efficiency")), None)
        if found is not None:
            rows.append({"trial": record.number, **found})
    return rows
