"""What a search returns: the best finished models, the front, and how far to believe them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autocomp.core.cost import LIMITS, MODELLED, TIMES, WEIGHT_BYTES
from autocomp.core.metric import KL, PERPLEXITY, positive
from autocomp.core.registry import COSTS
from autocomp.evaluate.record import versions
from autocomp.evaluate.winner import (
    RankCorrelation,
    WinnersCurse,
    decide,
    rank_correlation,
    winners_curse,
)
from autocomp.search.hypervolume import HypervolumeCurve, curve_of
from autocomp.search.records import FinishedRecord, TrialRecord, quality
from autocomp.search.study import Study

FAMILY_TOLERANCE = 0.03


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Args:
        study_dir: Where it lives.
        best: Finished plan with the lowest held-out loss within the limits.
        best_uniform: The same among uniform plans: one spec for all decoder linears, one for the
            embedding.
        front: Non-dominated measured plans, smallest first.
        families: What each family costs at the budget.
        curse: How far the best searched plan can be believed; ``None`` before any was measured.
        finalists: Finished plans, best first, each compared with the first on held-out units.
        agreement: Rank correlation of searched and finished loss over all finished plans.
        tokens: Tokens read, by what for.
        timings: Wall time and peak memory by stage.
        settings: What the study was made with, by dotted key.
        metric: Name of the loss that was minimised.
        cost: Name of the cost that was minimised beside it.
        sources: Where each cost comes from, by name (``autocomp.core.cost.SOURCES``).
        hypervolume: How the front grew; ``None`` before anything was measured.
    """

    study_dir: Path
    best: FinishedRecord | None
    best_uniform: FinishedRecord | None
    front: list[dict[str, Any]]
    families: list[dict[str, Any]]
    curse: WinnersCurse | None = None
    finalists: list[dict[str, Any]] = field(default_factory=list)
    agreement: RankCorrelation | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    timings: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    metric: str = KL
    cost: str = WEIGHT_BYTES
    sources: dict[str, str] = field(default_factory=dict)
    hypervolume: HypervolumeCurve | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that ``autocomp search --json`` prints."""
        ratio, best, uniform = None, self.best, self.best_uniform
        if best is not None and uniform is not None and best.recovery == uniform.recovery:
            ratio = positive(best.heldout_loss) / positive(uniform.heldout_loss)
        return {
            "study_dir": str(self.study_dir),
            "metric": self.metric,
            "cost": self.cost,
            "cost_sources": self.sources,
            "settings": self.settings,
            "versions": versions(),
            "best": None if self.best is None else self.best.to_json(),
            "best_uniform": None if self.best_uniform is None else self.best_uniform.to_json(),
            "best_over_uniform": ratio,
            "front": self.front,
            "hypervolume": None if self.hypervolume is None else self.hypervolume.to_json(),
            "winners_curse": None if self.curse is None else asdict(self.curse),
            "finalists": self.finalists,
            "rank_correlation": None if self.agreement is None else asdict(self.agreement),
            "families": self.families,
            "tokens": self.tokens,
            "timings": self.timings,
        }


def front_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row a plan of the front: searched values, and finished ones where they exist."""
    records = {record.number: record for record in study.records()}
    rows = []
    for point in study.front().points:
        record = records[point.number]
        row: dict[str, Any] = {
            "trial": point.number,
            "family": record.family,
            "origin": record.origin,
            WEIGHT_BYTES: record.weight_bytes,
            **record.costs,
            study.metric: point.loss,
        }
        names = [f"heldout_{study.metric}", f"heldout_{study.metric}_se"]
        names = [] if study.metric == KL else names
        done = {} if record.finished is None else record.finished.to_json()
        names += ["heldout_kl_nats", "heldout_se"]
        names += [] if study.metric == PERPLEXITY else ["perplexity"]
        for name in names:
            row[name] = done.get(name)
        rows.append(row)
    return rows


def family_rows(records: Sequence[TrialRecord], metric: str) -> list[dict[str, Any]]:
    """Return the loss of each family at equal cost, such as bytes.

    Compared are plans measured to the top rung whose cost lies within 3 % of the best plan's, so
    costs are equal up to what single layers leave over.

    Args:
        records: All trials.
        metric: Name of the loss.
    """
    measured = [(r.loss, r.logical, r) for r in records if r.feasible and r.loss is not None]
    if not measured:
        return []
    measured.sort(key=lambda item: item[:2])
    least, _, best = measured[0]
    rows: dict[str, dict[str, Any]] = {}
    for loss, _, record in measured:
        if abs(record.cost / best.cost - 1) > FAMILY_TOLERANCE:
            continue
        name = "uniform" if record.origin == "uniform" else record.family
        row = rows.setdefault(
            name,
            {
                "family": name,
                "trial": record.number,
                metric: loss,
                "over_best": positive(loss) / positive(least),
                "weight_bytes": record.weight_bytes,
                "measured": 0,
            },
        )
        row["measured"] += 1
    return list(rows.values())


def curse_of(records: Sequence[TrialRecord]) -> WinnersCurse | None:
    """Return the winner's curse of the best searched plan; ``None`` before any was measured."""
    losses = [record.unit_loss for record in records if record.feasible and record.unit_loss]
    return winners_curse(losses) if losses else None


def finalist_rows(records: Sequence[TrialRecord], metric: str) -> list[dict[str, Any]]:
    """Return the finished plans within the limits, best first, each paired with the first.

    Args:
        records: All trials.
        metric: Name of the loss.
    """
    done = {
        record.number: record.finished
        for record in records
        if record.finished is not None and record.finished.unit_loss and record.within_limits
    }
    if not done:
        return []
    ranking = decide(
        {number: finished.unit_loss for number, finished in done.items()},
        {number: finished.weight_bytes for number, finished in done.items()},
    )
    return [
        {
            "trial": place.number,
            f"heldout_{metric}": done[place.number].heldout_loss,
            "weight_bytes": done[place.number].weight_bytes,
            "tied": place.comparison.tied,
            **asdict(place.comparison),
        }
        for place in ranking
    ]


def agreement_of(study: Study) -> RankCorrelation | None:
    """Return the rank correlation of searched and finished loss; trained artefacts are left out.

    It is over all finished plans of the study, uniform ones and those of smaller budgets included.
    """
    searched = {record.number: record.loss for record in study.records() if record.feasible}
    pairs = [
        (searched[done.number], done.heldout_loss)
        for done in study.finished()
        if not done.recovery and searched.get(done.number) is not None
    ]
    return rank_correlation([float(a) for a, _ in pairs if a is not None], [b for _, b in pairs])


def cost_sources(study: Study) -> dict[str, str]:
    """Return where the costs of a study's trials come from, by name."""
    limits = (name for name, key in LIMITS.items() if study.fingerprint.get(f"budget.{key}"))
    times = study.fingerprint.get("budget.times", MODELLED)
    return {
        name: times if name in TIMES else COSTS[name].source
        for name in (WEIGHT_BYTES, *limits, study.cost)
    }


def token_counts(study: Study) -> dict[str, int]:
    """Return the tokens that a study read, by what for, each pass once however often it resumed.

    ``calibration`` is the text that each variant's statistics and scores come from, which is read
    forward and backward; ``reference`` what the base and uncompressed variants were measured on;
    ``search`` what trials read, stopped ones too; ``finish`` the calibration text of each artefact
    and what trained it; ``heldout`` what artefacts were measured on.
    """
    finished = study.finished()
    counts = {"calibration": 0, "reference": 0} | study.get_tokens()
    counts["search"] = sum(record.tokens for record in study.records())
    counts["finish"] = sum(record.calibration_tokens for record in finished)
    counts["heldout"] = sum(
        found["data"]["tokens"] for record in finished for found in record.measurements
    )
    return counts


def summarise(
    study: Study, study_dir: Path, timings: list[dict[str, Any]] | None = None
) -> SearchResult:
    """Return the result of a study as it stands."""
    records = study.records()
    finished = [r for r in records if r.finished is not None and r.within_limits]

    def best(candidates: list[TrialRecord]) -> FinishedRecord | None:
        found = [record.finished for record in candidates if record.finished is not None]
        return min(found, key=quality, default=None)

    return SearchResult(
        study_dir=study_dir,
        best=best(finished),
        best_uniform=best([record for record in finished if record.origin == "uniform"]),
        front=front_rows(study),
        families=family_rows(records, study.metric),
        curse=curse_of(records),
        finalists=finalist_rows(records, study.metric),
        agreement=agreement_of(study),
        tokens=token_counts(study),
        timings=timings or [],
        settings=study.fingerprint,
        metric=study.metric,
        cost=study.cost,
        sources=cost_sources(study),
        hypervolume=curve_of(study),
    )
