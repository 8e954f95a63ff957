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


class Finished(Protocol):
    """A finished artefact, measured from its file on held-out text."""

    @property
    def heldout_kl_nats(self) -> float:
        """Mean KL from the base model, nats a token."""

    @property
    def heldout_se(self) -> float:
        """Standard error of that mean over windows, nats."""

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
    def kl_nats(self) -> float | None:
        """Search KL, nats a token; ``None`` when not measured."""

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
    kl_nats: float
    on_front: bool
    heldout_kl_nats: float | None = None
    heldout_se: float | None = None
    perplexity: float | None = None
    file_bytes: int | None = None
    recovery: str = ""

    @property
    def uniform(self) -> bool:
        """Whether it is one of the uniform baselines."""
        return self.origin == "uniform"


@dataclass(frozen=True)
class FrontInfo:
    """Everything the renderers show.

    Args:
        points: Fully measured trials by bytes.
        families: ``family``, ``measured``, ``trial``, ``weight_bytes``, ``kl_nats`` of its best
            plan at equal bytes, and ``over_best``, that KL over the lowest of any family.
        best: Trial of the finished plan with the lowest held-out KL, or ``None``.
        best_uniform: The same among the uniform baselines.
        rank_correlation: Spearman's ρ of searched and held-out KL, from three finished trials on.
        counts: Trials by state.
        settings: What every figure depends on: model, corpus, window, tokens, budget.
        timings: ``stage``, ``seconds``, ``peak_rss_bytes`` a row.
    """

    points: tuple[Point, ...]
    families: tuple[Mapping[str, Any], ...]
    best: int | None
    best_uniform: int | None
    rank_correlation: float | None
    counts: Mapping[str, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    timings: tuple[Mapping[str, Any], ...] = ()

    @property
    def front(self) -> tuple[Point, ...]:
        """The non-dominated points, and every finished one, by bytes."""
        return tuple(p for p in self.points if p.on_front or p.heldout_kl_nats is not None)

    def point(self, trial: int | None) -> Point | None:
        """Return the point of a trial, or ``None``."""
        return next((p for p in self.points if p.trial == trial), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "settings": dict(self.settings),
            "counts": dict(self.counts),
            "best": self.best,
            "best_uniform": self.best_uniform,
            "rank_correlation": self.rank_correlation,
            "front": [asdict(p) for p in self.front],
            "families": [dict(row) for row in self.families],
            "timings": [dict(row) for row in self.timings],
            "points": [asdict(p) for p in self.points],
        }

    def to_json_text(self) -> str:
        """Return :meth:`to_json` as indented text."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def to_csv(self) -> str:
        """Return all points as CSV text with a header line."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(Point.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(p) for p in self.points)
        return text.getvalue()


def front_info(
    records: Sequence[Record],
    front: Iterable[int],
    *,
    families: Sequence[Mapping[str, Any]] = (),
    timings: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
) -> FrontInfo:
    """Return what the renderers show of a study.

    Args:
        records: All trials.
        front: Numbers of the non-dominated ones.
        families: Rows of what each family costs.
        timings: Rows of wall time and peak memory.
        settings: What every figure depends on: model, corpus, window, tokens, budget.
    """
    numbers = set(front)
    measured = [record for record in records if record.feasible and record.kl_nats is not None]
    points = sorted(
        (_point(record, record.number in numbers) for record in measured),
        key=lambda p: (p.weight_bytes, p.kl_nats, p.trial),
    )
    return FrontInfo(
        points=tuple(points),
        families=tuple(families),
        best=_lowest(points),
        best_uniform=_lowest([p for p in points if p.uniform]),
        rank_correlation=_rank_correlation(points),
        counts=Counter(str(record.state) for record in records),
        settings=dict(settings or {}),
        timings=tuple(timings),
    )


def _point(record: Record, on_front: bool) -> Point:
    point = Point(
        trial=record.number,
        family=record.family,
        origin=record.origin,
        weight_bytes=record.weight_bytes,
        kl_nats=math.nan if record.kl_nats is None else record.kl_nats,
        on_front=on_front,
    )
    done = record.finished
    if done is None:
        return point
    return replace(
        point,
        heldout_kl_nats=done.heldout_kl_nats,
        heldout_se=done.heldout_se,
        perplexity=done.perplexity,
        file_bytes=done.weight_bytes,
        recovery=done.recovery,
    )


def _lowest(points: Sequence[Point]) -> int | None:
    ranked = [(p.heldout_kl_nats, p.trial) for p in points if p.heldout_kl_nats is not None]
    return min(ranked)[1] if ranked else None


def _rank_correlation(points: Sequence[Point]) -> float | None:
    """Return Spearman's ρ of searched and held-out KL: Pearson's r of the ranks."""
    pairs = [(p.kl_nats, p.heldout_kl_nats) for p in points if p.heldout_kl_nats is not None]
    if len(pairs) < 3:
        return None
    searched, heldout = np.array(pairs).argsort(axis=0).argsort(axis=0).T
    return float(np.atleast_2d(np.corrcoef(searched, heldout))[0, 1])
