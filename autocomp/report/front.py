"""The front of a study as plain data: searched and finished values side by side."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from autocomp.core.cost import EXACT, WEIGHT_BYTES
from autocomp.core.metric import KL, PERPLEXITY, positive
from autocomp.report.conclusion import Conclusion
from autocomp.report.roofline import RooflineInfo


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


class Growth(Protocol):
    """The hypervolume of the front after every told trial."""

    @property
    def shares(self) -> Sequence[float]:
        """In shares of the box between the reference point and 0."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""


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
    def cost(self) -> float:
        """The cost that the study minimises, such as those bytes."""

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
    cost: float
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

    def finished_cost(self, cost: str) -> float:
        """Return the cost of the artefact: its file's bytes, else what was predicted of it."""
        return self.file_bytes or 0 if cost == WEIGHT_BYTES else self.cost

    def to_json(self, metric: str, cost: str = WEIGHT_BYTES) -> dict[str, Any]:
        """Return plain data in which losses and the cost bear their names."""
        data = asdict(self)
        kl, ppl, value = (data.pop(key) for key in ("heldout_kl_nats", "perplexity", "cost"))
        names = {"loss": metric, "heldout_loss": f"heldout_{metric}"}
        named = {names.get(name, name): value for name, value in data.items()}
        named |= {} if metric == PERPLEXITY else {"perplexity": ppl}
        named |= {} if metric == KL else {"heldout_kl_nats": kl}
        return named if cost == WEIGHT_BYTES else named | {cost: value}


@dataclass(frozen=True)
class CostAxis:
    """The cost that is minimised beside the loss.

    Args:
        name: Its name, such as ``weight_bytes``.
        limit: The most that is allowed; ``None`` without a limit.
        sources: Where each recorded cost comes from, by name (``autocomp.core.cost.SOURCES``).
        growth: How the front grew; ``None`` before anything was measured.
    """

    name: str = WEIGHT_BYTES
    limit: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    growth: Growth | None = None


@dataclass(frozen=True)
class FrontInfo:
    """Everything the renderers show.

    Args:
        points: Fully measured trials by cost.
        families: ``family``, ``measured``, ``trial``, ``weight_bytes``, the loss of its best plan
            at equal bytes under the metric's name, and ``over_best``, that loss over the lowest of
            any family.
        best: Trial of the finished plan with the lowest held-out loss, or ``None``.
        best_uniform: The same among the uniform baselines.
        counts: Trials by state.
        metric: Name of the loss.
        axis: The cost that is minimised beside it.
        conclusion: How far to believe the best.
        settings: What every figure depends on: model, corpus, window, tokens, budget.
        timings: ``stage``, ``seconds``, ``peak_rss_bytes`` a row.
        efficiency: ``trial`` and the JSON of its
            :class:`~autocomp.evaluate.record.Efficiency`, a row a finished plan.
        roofline: Those plans under the roof of a device, if there is one.
        joint: The front over all costs: ``reference`` by name, ``trials``, ``hypervolume``,
            ``share``; ``None`` where there is one cost.
    """

    points: tuple[Point, ...]
    families: tuple[Mapping[str, Any], ...]
    best: int | None
    best_uniform: int | None
    counts: Mapping[str, int]
    metric: str = KL
    axis: CostAxis = field(default_factory=lambda: CostAxis())
    conclusion: Conclusion = field(default_factory=lambda: Conclusion())
    settings: Mapping[str, Any] = field(default_factory=dict)
    timings: tuple[Mapping[str, Any], ...] = ()
    efficiency: tuple[Mapping[str, Any], ...] = ()
    roofline: RooflineInfo | None = None
    joint: Mapping[str, Any] | None = None

    @property
    def cost(self) -> str:
        """Name of the cost that is minimised."""
        return self.axis.name

    @property
    def source(self) -> str:
        """Where that cost comes from; ``exact`` where nothing else is said."""
        return self.axis.sources.get(self.cost, EXACT)

    @property
    def front(self) -> tuple[Point, ...]:
        """The non-dominated points, and every finished one, by cost."""
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
            "cost": self.cost,
            "cost_sources": dict(self.axis.sources),
            "settings": dict(self.settings),
            "counts": dict(self.counts),
            "best": self.best,
            "best_uniform": self.best_uniform,
            "front": [p.to_json(self.metric, self.cost) for p in self.front],
            "hypervolume": self.axis.growth and self.axis.growth.to_json(),
            "joint_front": None if self.joint is None else dict(self.joint),
            **self.conclusion.to_json(),
            "families": [dict(row) for row in self.families],
            "timings": [dict(row) for row in self.timings],
            "efficiency": [dict(row) for row in self.efficiency],
            "roofline": None if self.roofline is None else asdict(self.roofline),
            "points": [p.to_json(self.metric, self.cost) for p in self.points],
        }

    def to_json_text(self) -> str:
        """Return :meth:`to_json` as indented text."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def to_csv(self) -> str:
        """Return all points as CSV text with a header line."""
        text = io.StringIO()
        header = Point(0, "", "", 0, 0.0, 0.0, on_front=False).to_json(self.metric, self.cost)
        writer = csv.DictWriter(text, fieldnames=list(header))
        writer.writeheader()
        writer.writerows(p.to_json(self.metric, self.cost) for p in self.points)
        return text.getvalue()


def front_info(
    records: Sequence[Record],
    front: Iterable[int],
    *,
    metric: str = KL,
    axis: CostAxis | None = None,
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
        axis: The cost that is minimised beside it; the bytes when not given.
        conclusion: How far to believe the best.
        families: Rows of what each family costs.
        timings: Rows of wall time and peak memory.
        settings: What every figure depends on: model, corpus, window, tokens, budget.
    """
    numbers = set(front)
    measured = [record for record in records if record.feasible and record.loss is not None]
    points = sorted(
        (_point(record, record.number in numbers) for record in measured),
        key=lambda p: (p.cost, p.loss, p.trial),
    )
    return FrontInfo(
        points=tuple(points),
        families=tuple(families),
        best=_lowest(points),
        best_uniform=_lowest([p for p in points if p.uniform]),
        counts=Counter(str(record.state) for record in records),
        metric=metric,
        axis=axis or CostAxis(),
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
        cost=record.cost,
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
