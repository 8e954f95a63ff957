"""Finding, opening and summarising a study for the commands that read one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocomp.cli.options import Place
from autocomp.config import StudyConfig
from autocomp.core.cost import LIMITS, TIMES, WEIGHT_BYTES
from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.metric import TASK_ERROR
from autocomp.env import storage_url
from autocomp.report.conclusion import Conclusion
from autocomp.report.front import CostAxis, FrontInfo, front_info
from autocomp.report.roofline import RooflineInfo, roofline_info

if TYPE_CHECKING:
    from autocomp.search.reprice import Repriced
    from autocomp.search.study import Study

JOURNAL = "journal.log"
TIMINGS = "timings.json"


@dataclass(frozen=True)
class StudyView:
    """A study opened for reading, and where it came from."""

    study: "Study"
    reference: str
    storage: str | None

    @property
    def study_dir(self) -> Path:
        """Where artefacts lie."""
        return self.study.study_dir

    def setting(self, key: str, default: Any = None) -> Any:
        """Return a setting that the study was made with, by dotted key."""
        return self.study.fingerprint.get(key, default)


def new_study_place(config: StudyConfig, place: Place) -> tuple[Path, str | None]:
    """Return directory and storage of a search: command line, file, environment, default."""
    name = config.model.rstrip("/").rpartition("/")[2]
    directory = place.study_dir or Path(config.study_dir or f"runs/{name}")
    return directory, place.storage or storage_url()


def open_view(reference: str) -> StudyView:
    """Open a study by directory, journal file or storage URL.

    A directory without a journal is looked up in the storage that the environment names.

    Raises:
        ConfigError: If there is no study.
    """
    from autocomp.search.study import Study

    storage = reference if "://" in reference else None
    directory = Path(reference)
    if storage is None and directory.is_dir() and not (directory / JOURNAL).exists():
        storage = storage_url()
    return StudyView(Study.open_existing(storage or reference), reference, storage)


def summarise(view: StudyView, repriced: "Repriced | None" = None) -> FrontInfo:
    """Return the front of a study with the settings that its figures depend on.

    Args:
        view: The study.
        repriced: Its trials with another cost than the one that it minimises.
    """
    from autocomp.search.joint import joint_front
    from autocomp.search.reprice import finished_efficiency
    from autocomp.search.result import (
        agreement_of,
        curse_of,
        family_rows,
        finalist_rows,
        token_counts,
    )

    study = view.study
    rungs = view.setting("data.rungs") or [None]
    settings = {
        "model": view.setting("model"),
        "corpus": view.setting("data.corpus"),
        "window": view.setting("data.window"),
        "tokens": rungs[-1],
        "held-out tokens": view.setting("data.heldout_tokens"),
        "max_bytes": view.setting("budget.max_bytes"),
        "max_memory": view.setting("budget.max_memory"),
        "max_decode_ms": view.setting("budget.max_decode_ms"),
        "max_prefill_ms": view.setting("budget.max_prefill_ms"),
        "max_flops": view.setting("budget.max_flops"),
        "device": view.setting("budget.device"),
        "times": view.setting("budget.times"),
        "seed": view.setting("seed"),
    }
    if study.metric == TASK_ERROR:
        settings |= {
            "tasks": ",".join(view.setting("objective.tasks", ())),
            "examples": view.setting("objective.rungs", [None])[-1],
        }
    records = study.records() if repriced is None else repriced.records
    front = [p.number for p in study.front().points] if repriced is None else repriced.front
    found = finished_efficiency(records) if repriced is None else repriced.efficiency
    info = front_info(
        records,
        front,
        metric=study.metric,
        axis=_axis(view, repriced),
        conclusion=Conclusion(
            curse=curse_of(records),
            finalists=tuple(finalist_rows(records, study.metric)),
            agreement=agreement_of(study),
            tokens=token_counts(study),
        ),
        families=family_rows(records, study.metric),
        timings=timings_of(view.study_dir),
        settings=settings,
    )
    joint = joint_front(records, study.metric, _limits(view, repriced))
    return replace(
        info,
        efficiency=tuple(found),
        roofline=_roofline(found),
        joint=None if joint is None else joint.to_json(),
    )


def _limits(view: StudyView, repriced: "Repriced | None") -> dict[str, float]:
    """Return the limits of a study by name of the cost; those of other devices' times are none."""
    found = {cost: view.setting(f"budget.{key}") for cost, key in LIMITS.items()}
    skipped = TIMES if repriced is not None else ()
    return {cost: value for cost, value in found.items() if value and cost not in skipped}


def _axis(view: StudyView, repriced: "Repriced | None") -> CostAxis:
    """Return the cost of a front: what the study minimises, or what it was priced anew in."""
    from autocomp.search.hypervolume import curve, curve_of
    from autocomp.search.result import cost_sources

    study = view.study
    if repriced is None:
        return CostAxis(
            name=study.cost,
            limit=view.setting(f"budget.{LIMITS[study.cost]}"),
            sources=cost_sources(study),
            growth=curve_of(study),
        )
    return CostAxis(
        name=repriced.cost,
        sources={repriced.cost: repriced.source},
        growth=curve(repriced.records, study.metric, repriced.cost),
    )


def _roofline(rows: Sequence[Mapping[str, Any]]) -> RooflineInfo | None:
    """Return finished plans under the roof of their device, where this machine knows it."""
    from autocomp.cost import Device, device_names

    names = {row["speed"]["device"] for row in rows if row.get("speed")}
    if len(names) != 1 or not names <= set(device_names()):
        return None
    return roofline_info(Device.named(names.pop()), rows)


def timings_of(study_dir: Path) -> list[dict[str, Any]]:
    """Return the timings of the last search in a study directory; none before one has ended."""
    path = study_dir / TIMINGS
    return list(json.loads(path.read_text("utf-8"))) if path.is_file() else []


def choose_trial(
    view: StudyView,
    *,
    trial: int | None = None,
    best: bool = False,
    knee: bool = False,
    under: int | None = None,
) -> int:
    """Return the trial that exactly one of the four ways names.

    ``best`` is the finished trial with the lowest held-out loss; before anything is finished, the
    lowest searched loss.

    Raises:
        ConfigError: If not exactly one way is given, the trial is unknown or the study is empty.
        InfeasibleError: If nothing measured holds the limits, or nothing is that small.
    """
    if (trial is not None) + best + knee + (under is not None) != 1:
        raise ConfigError("give exactly one of --trial N, --best, --knee and --under SIZE.")
    records = view.study.records()
    if not records:
        raise ConfigError(
            f"the study {view.reference} has no trials yet: run autocomp search with --trials."
        )
    if trial is not None:
        if trial not in {record.number for record in records}:
            raise ConfigError(
                f"the study {view.reference} has no trial {trial}; it has "
                f"{min(r.number for r in records)} to {max(r.number for r in records)} "
                f"(autocomp front {view.reference})."
            )
        return trial
    front = view.study.front()
    if not front.points:
        raise InfeasibleError(
            f"none of the {len(records)} trials of {view.reference} was measured in full within "
            "the budget. Run autocomp search with more --trials, or raise the budget."
        )
    if knee:
        return int(front.knee().number)
    if under is not None:
        return int(view.study.front(WEIGHT_BYTES).under(under).number)
    done = view.study.best_finished()
    return int(front.under(float("inf")).number if done is None else done.number)
