"""What a search returns: the best finished models, the front, and what each family costs."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autocomp.search.records import FinishedRecord, TrialRecord
from autocomp.search.study import Study

FAMILY_TOLERANCE = 0.03


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Args:
        study_dir: Where it lives.
        best: Finished plan with the lowest held-out KL within the limits.
        best_uniform: The same among uniform plans: one spec for all decoder linears, one for the
            embedding.
        front: Non-dominated measured plans, smallest first.
        families: What each family costs in KL at the budget.
        timings: Wall time and peak memory by stage.
        settings: What the study was made with, by dotted key.
    """

    study_dir: Path
    best: FinishedRecord | None
    best_uniform: FinishedRecord | None
    front: list[dict[str, Any]]
    families: list[dict[str, Any]]
    timings: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that ``autocomp search --json`` prints."""
        ratio, best, uniform = None, self.best, self.best_uniform
        if best is not None and uniform is not None and best.recovery == uniform.recovery:
            ratio = best.heldout_kl_nats / uniform.heldout_kl_nats
        return {
            "study_dir": str(self.study_dir),
            "settings": self.settings,
            "versions": versions(),
            "best": None if self.best is None else self.best.to_json(),
            "best_uniform": None if self.best_uniform is None else self.best_uniform.to_json(),
            "best_over_uniform": ratio,
            "front": self.front,
            "families": self.families,
            "timings": self.timings,
        }


def versions() -> dict[str, str]:
    """Return what a result depends on besides its settings: packages, Python, processor."""
    packages = ("autocomp", "torch", "transformers", "optuna", "numpy", "scipy")
    found = {name: version(name) for name in packages}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def front_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row a plan of the front: searched values, and finished ones where they exist."""
    records = {record.number: record for record in study.records()}
    rows = []
    for point in study.front().points:
        record = records[point.number]
        finished = record.finished
        rows.append(
            {
                "trial": point.number,
                "family": record.family,
                "origin": record.origin,
                "weight_bytes": point.weight_bytes,
                "kl_nats": point.kl_nats,
                "heldout_kl_nats": None if finished is None else finished.heldout_kl_nats,
                "heldout_se": None if finished is None else finished.heldout_se,
                "perplexity": None if finished is None else finished.perplexity,
            }
        )
    return rows


def family_rows(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Return what each family costs in KL at equal bytes.

    Compared are plans measured to the top rung whose size lies within 3 % of the best plan's, so
    sizes are equal up to what single layers leave over.
    """
    feasible = [record for record in records if record.feasible and record.kl_nats is not None]
    if not feasible:
        return []
    best = min(feasible, key=lambda record: record.kl_nats or 0.0)
    near = [
        record
        for record in feasible
        if abs(record.weight_bytes / best.weight_bytes - 1) <= FAMILY_TOLERANCE
    ]
    rows: dict[str, dict[str, Any]] = {}
    for record in sorted(near, key=lambda record: (record.kl_nats or 0.0, record.logical)):
        name = "uniform" if record.origin == "uniform" else record.family
        row = rows.setdefault(
            name,
            {
                "family": name,
                "trial": record.number,
                "kl_nats": record.kl_nats,
                "over_best": (record.kl_nats or 0.0) / (best.kl_nats or 1.0),
                "weight_bytes": record.weight_bytes,
                "measured": 0,
            },
        )
        row["measured"] += 1
    return list(rows.values())


def summarise(
    study: Study, study_dir: Path, timings: list[dict[str, Any]] | None = None
) -> SearchResult:
    """Return the result of a study as it stands."""
    records = study.records()
    finished = [r for r in records if r.finished is not None and r.within_limits]

    def best(candidates: list[TrialRecord]) -> FinishedRecord | None:
        found = [record.finished for record in candidates if record.finished is not None]
        return min(found, key=lambda item: (item.heldout_kl_nats, item.number), default=None)

    return SearchResult(
        study_dir=study_dir,
        best=best(finished),
        best_uniform=best([record for record in finished if record.origin == "uniform"]),
        front=front_rows(study),
        families=family_rows(records),
        timings=timings or [],
        settings=study.fingerprint,
    )
