"""The front of a study as plain data: searched and finished values side by side."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from autocomp.core.metric import KL, positive
from autocomp.report.conclusion import Conclusion


class Finished(Protocol):
    """A finished artefact, measured from its file on held-out text and examples."""

    @property
    def heldout_loss(self) -> float:
        """The study's metric, such as the mean KL from the base model in nats a token."""

    @property
    def heldout_loss_se(self) -> float:
        """Standard error of that mean over windows or examples."""

    @property
    def heldout_kl_nats(self) -> float:
        """Mean KL from the base model, nats a token."""

    @property
    def perplexity(self) -> float:
        """Held-out perplexity a token."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight file on disk."""

    @property
    def recovery(self) -> str:
        """Token of the training after compression; empty without one."""


class Record(Protocol):
    """A trial as the study returns it."""

    @property
    def number(self) -> int:
        """Number in the Optuna study."""

    @property
    def state(self) -> Any:
        """``COMPLETE``, ``PRUNED``, ``FAIL`` or ``RUNNING``."""

    @property
    def origin(self) -> str:
        """What proposed it: ``uniform``, ``probe-…``, ``knapsack``, …."""

    @property
    def family(self) -> str:
        """``quantized``, ``sparse``, ``low-rank``, ``bypassed``, or several joined by ``+``."""

    @property
    def weight_bytes(self) -> int:
        """Predicted bytes of the weight file."""

    @property
    def loss(self) -> float | None:
        """The study's metric in the search; ``None`` when not measured."""

    @property
    def feasible(self) -> bool:
        """Whether it was measured on the full search text and holds every limit."""

    @property
    def finished(self) -> Finished | None:
        """Its artefact, if there is one."""


@dataclass(frozen=True, slots=True)
class Point:
    """A fully measured trial; the ``heldout`` values exist once it has been finished."""

    trial: int
    family: str
    origin: str
    weight_bytes: int
    loss: float
    on_front: bool
    heldout_loss: float | None = None
    heldout_se: float | None = None
    heldout_kl_nats: float | None = None
    perplexity: float | None = None
    file_bytes: int | None = None
    recovery: str = ""

    @property
    def uniform(self) -> bool:
        """Whether it is one of the uniform baselines."""
        return self.origin == "uniform"

    def to_json(self, metric: str) -> dict[str, Any]:
        """Return plain data in which losses bear the metric's name."""
        data = asdict(self)
        kl = data.pop("heldout_kl_nats")
        names = {"loss": metric, "heldout_loss": f"heldout_{metric}"}
        named = {names.get(name, name): value for name, value in data.items()}
        return named if metric == KL else named | {"heldout_kl_nats": kl}


@dataclass(frozen=True)
class FrontInfo:
    """Everything the renderers show.

    Args:
        points: Fully measured trials by bytes.
        families: ``family``, ``measured``, ``trial``, ``weight_bytes``, the loss of its best plan
            at equal bytes under the metric's name, and ``over_best``, that loss over the lowest of
            any family.
        best: Trial of the finished plan with the lowest held-out loss, or ``None``.
        best_uniform: The same among the uniform baselines.
        rank_correlation: Spearman's ρ of searched and held-out loss, from three finished trials
            on.
        counts: Trials by state.
        metric: Name of the loss.
        conclusion: How far to believe the best.
        settings: What every figure depends on: model, corpus, window, tokens, budget.
        timings: ``stage``, ``seconds``, ``peak_rss_bytes`` a row.
    """

    points: tuple[Point, ...]
    families: tuple[Mapping[str, Any], ...]
    best: int | None
    best_uniform: int | None
    rank_correlation: float | None
    counts: Mapping[str, int]
    metric: str = KL
    conclusion: Conclusion = field(default_factory=lambda: Conclusion())
    settings: Mapping[str, Any] = field(default_factory=dict)
    timings: tuple[Mapping[str, Any], ...] = ()

    @property
    def front(self) -> tuple[Point, ...]:
        """The non-dominated points, and every finished one, by bytes."""
        return tuple(p for p in self.points if p.on_front or p.heldout_loss is not None)

    @property
    def heldout_ratio(self) -> float | None:
        """Held-out loss of the best over that of the best uniform one, trained alike."""
        best, uniform = self.point(self.best), self.point(self.best_uniform)
        if best is None or uniform is None or best.recovery != uniform.recovery:
            return None
        if best.heldout_loss is None or uniform.heldout_loss is None:
            return None
        return positive(best.heldout_loss) / positive(uniform.heldout_loss)

    def point(self, trial: int | None) -> Point | None:
        """Return the point of a trial, or ``None``."""
        return next((p for p in self.points if p.trial == trial), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "metric": self.metric,
            "settings": dict(self.settings),
            "counts": dict(self.counts),
            "best": self.best,
            "best_uniform": self.best_uniform,
            "rank_correlation": self.rank_correlation,
            "front": [p.to_json(self.metric) for p in self.front],
            **self.conclusion.to_json(),
            "families": [dict(row) for row in self.families],
            "timings": [dict(row) for row in self.timings],
            "points": [p.to_json(self.metric) for p in self.points],
        }

    def to_json_text(self) -> str:
        """Return :meth:`to_json` as indented text."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def to_csv(self) -> str:
        """Return all points as CSV text with a header line."""
        text = io.StringIO()
        header = Point(0, "", "", 0, 0.0, on_front=False).to_json(self.metric)
        writer = csv.DictWriter(text, fieldnames=list(header))
        writer.writeheader()
        writer.writerows(p.to_json(self.metric) for p in self.points)
        return text.getvalue()


def front_info(
    records: Sequence[Record],
    front: Iterable[int],
    *,
    metric: str = KL,
    conclusion: Conclusion | None = None,
    families: Sequence[Mapping[str, Any]] = (),
    timings: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
) -> FrontInfo:
    """Return what the renderers show of a study.

    Args:
        records: All trials.
        front: Numbers of the non-dominated ones.
        metric: Name of the loss.
        conclusion: How far to believe the best.
        families: Rows of what each family costs.
        timings: Rows of wall time and peak memory.
        settings: What every figure depends on: model, corpus, window, tokens, budget.
    """
    numbers = set(front)
    measured = [record for record in records if record.feasible and record.loss is not None]
    points = sorted(
        (_point(record, record.number in numbers) for record in measured),
        key=lambda p: (p.weight_bytes, p.loss, p.trial),
    )
    return FrontInfo(
        points=tuple(points),
        families=tuple(families),
        best=_lowest(points),
        best_uniform=_lowest([p for p in points if p.uniform]),
        rank_correlation=_rank_correlation(points),
        counts=Counter(str(record.state) for record in records),
        metric=metric,
        conclusion=conclusion or Conclusion(),
        settings=dict(settings or {}),
        timings=tuple(timings),
    )


def _point(record: Record, on_front: bool) -> Point:
    point = Point(
        trial=record.number,
        family=record.family,
        origin=record.origin,
        weight_bytes=record.weight_bytes,
        loss=math.nan if record.loss is None else record.loss,
        on_front=on_front,
    )
    done = record.finished
    if done is None:
        return point
    return replace(
        point,
        heldout_loss=done.heldout_loss,
        heldout_se=done.heldout_loss_se,
        heldout_kl_nats=done.heldout_kl_nats,
        perplexity=done.perplexity,
        file_bytes=done.weight_bytes,
        recovery=done.recovery,
    )


def _lowest(points: Sequence[Point]) -> int | None:
    ranked = [(p.heldout_loss, p.trial) for p in points if p.heldout_loss is not None]
    return min(ranked)[1] if ranked else None


def _rank_correlation(points: Sequence[Point]) -> float | None:
    """Return Spearman's ρ of searched and held-out loss: Pearson's r of the ranks."""
    pairs = [(p.loss, p.heldout_loss) for p in points if p.heldout_loss is not None]
    if len(pairs) < 3:
        return None
    searched, heldout = np.array(pairs).argsort(axis=0).argsort(axis=0).T
    return float(np.atleast_2d(np.corrcoef(searched, heldout))[0, 1])
