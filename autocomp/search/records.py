"""What a study holds, as plain frozen data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autocomp.core.cost import EXACT, MODELLED, TIMES, WEIGHT_BYTES
from autocomp.core.errors import ConfigError
from autocomp.core.metric import KL, short_name
from autocomp.core.plan import Plan

FIDELITY = "fidelity"


@dataclass(frozen=True, slots=True)
class NewTrial:
    """A proposal that is ready to be stored.

    Args:
        logical: Index of the proposal in the study; the seed of everything random about it.
        params: Canonical option index by group.
        distributions: Range of every parameter.
        plan: What the parameters decode to.
        origin: What proposed it, such as ``uniform`` or ``mutation``.
        family: Kind of plan, such as ``quantized`` or ``bypassed``.
        weight_bytes: Predicted size of the weight file, which is exact.
        constraints: Amounts by which limits are exceeded (``weight_bytes − limit``); feasible at
            0 and below.
        details: What the sampler kept of the proposal, JSON values.
        costs: What else is limited or minimised, predicted, by name.
        sources: Where each of these comes from.
    """

    logical: int
    params: Mapping[str, int]
    distributions: Mapping[str, IntDistribution]
    plan: Plan
    origin: str
    family: str
    weight_bytes: int
    constraints: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes of the trial."""
        return {
            "logical": self.logical,
            "origin": self.origin,
            "family": self.family,
            "weight_bytes": self.weight_bytes,
            "digest": self.plan.digest,
            "plan": self.plan.canonical(),
            "proposal": dict(self.details),
            "costs": dict(self.costs),
            "cost_sources": dict(self.sources),
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss on a prefix of what the search reads.

    Args:
        loss: The study's metric over units: their mean, such as KL to the base in nats a token,
            or the perplexity of their mean cross entropy.
        unit_loss: The same of each unit: a window, or an example of a task.
        tokens: Tokens read.
        seconds: Wall time of the evaluation.
        measurement: JSON of the :class:`~autocomp.evaluate.record.Measurement`.
    """

    loss: float
    unit_loss: tuple[float, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    measurement: Mapping[str, Any] = field(default_factory=dict)

    def attributes(self, metric: str) -> dict[str, Any]:
        """Return the user attributes of a trial so measured."""
        return {
            metric: self.loss,
            "unit_loss": list(self.unit_loss),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "measurement": dict(self.measurement),
        }


@dataclass(frozen=True, slots=True)
class FinishedRecord:
    """A finished artefact, measured from its file on held-out text, and held-out examples.

    Args:
        number: Trial number.
        artefact: Folder, relative to the study directory.
        heldout_kl_nats: KL to the base, nats a token.
        heldout_se: Standard error of that mean over windows.
        perplexity: Of the held-out text under the artefact.
        weight_bytes: Size of the weight file on disk.
        heldout_loss: The study's metric on what was held out for it; the KL where that is it.
        heldout_loss_se: Standard error of that mean over units.
        metric: Name of the study's metric.
        unit_loss: The metric of each held-out unit, to compare artefacts in pairs; for a
            perplexity, the cross entropy of each window.
        base_perplexity: Of the same text under the base model.
        corpus: Name of the text.
        window: Window length, tokens.
        tokens: Held-out tokens read.
        calibration_tokens: Calibration tokens that finishing read.
        seconds: Wall time of finishing and measuring.
        finish: Token of what tuned its blocks, or ``none``.
        recovery: Token of the training that made it from the plainly finished one; empty for
            that one.
        measurements: JSON of each :class:`~autocomp.evaluate.record.Measurement`.
    """

    number: int
    artefact: str
    heldout_kl_nats: float
    heldout_se: float
    perplexity: float
    weight_bytes: int
    heldout_loss: float
    heldout_loss_se: float
    metric: str = KL
    unit_loss: tuple[float, ...] = field(default=(), repr=False)
    base_perplexity: float | None = None
    corpus: str = ""
    window: int = 0
    tokens: int = 0
    calibration_tokens: int = 0
    seconds: float = 0.0
    finish: str = ""
    recovery: str = ""
    measurements: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, in which the loss bears the metric's name."""
        data = asdict(self)
        loss, error = data.pop("heldout_loss"), data.pop("heldout_loss_se")
        if self.metric != KL:
            data |= {f"heldout_{self.metric}": loss, f"heldout_{self.metric}_se": error}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FinishedRecord":
        """Return the record of its JSON form."""
        rest, metric = dict(data), data.get("metric", KL)
        loss, error = rest["heldout_kl_nats"], rest["heldout_se"]
        if metric != KL:
            loss, error = rest.pop(f"heldout_{metric}"), rest.pop(f"heldout_{metric}_se")
        for name in ("unit_loss", "measurements"):
            rest[name] = tuple(rest.get(name, ()))
        return cls(**rest, heldout_loss=loss, heldout_loss_se=error)


def describe(finished: FinishedRecord) -> str:
    """Return what a finished artefact measured, in one line."""
    loss = (
        f"held-out {short_name(finished.metric)} {finished.heldout_loss:.4f} ± "
        f"{finished.heldout_loss_se:.4f}"
    )
    kl = "" if finished.metric == KL else f", KL {finished.heldout_kl_nats:.4f}"
    base = "" if finished.base_perplexity is None else f" (base {finished.base_perplexity:.2f})"
    return (
        f"{loss}{kl}, perplexity {finished.perplexity:.2f}{base}, "
        f"{finished.weight_bytes / 1e6:.2f} MB"
    )


def quality(finished: FinishedRecord) -> tuple[float, int, int, str]:
    """Return what finished artefacts are ordered by, best first: held-out loss, then bytes."""
    return finished.heldout_loss, finished.weight_bytes, finished.number, finished.recovery


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study.

    Args:
        number: Number in the Optuna study.
        logical: Index of the proposal.
        state: ``RUNNING``, ``COMPLETE`` (measured to the top rung), ``PRUNED`` (infeasible, or
            stopped at a rung) or ``FAIL``.
        origin: What proposed it.
        family: Kind of plan.
        plan_json: Canonical JSON of the plan.
        digest: Digest of the plan.
        params: Option index by group.
        weight_bytes: Size of the weight file, bytes.
        constraints: By name; feasible at ≤ 0.
        loss: The study's metric on the ``tokens`` read; ``None`` if never measured.
        unit_loss: The same of each unit read.
        tokens: Tokens read.
        reason: Why it was stopped, refused or failed.
        seconds: Wall time of the evaluation.
        measurement: JSON of the :class:`~autocomp.evaluate.record.Measurement`; empty if none.
        finished: Its artefact, if there is one; the best, where it was trained too.
        details: What the sampler kept of the proposal.
        costs: Predicted costs by name; of old trials the weight file alone.
        sources: Where each of these comes from (``autocomp.core.cost.SOURCES``).
        minimised: Name of the cost that the study minimises.
    """

    number: int
    logical: int
    state: str
    origin: str
    family: str
    plan_json: str = field(repr=False)
    digest: str
    params: Mapping[str, int] = field(repr=False)
    weight_bytes: int
    constraints: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None
    unit_loss: tuple[float, ...] = field(default=(), repr=False)
    tokens: int = 0
    reason: str = ""
    seconds: float = 0.0
    measurement: Mapping[str, Any] = field(default_factory=dict, repr=False)
    finished: FinishedRecord | None = None
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    costs: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    minimised: str = WEIGHT_BYTES

    @cached_property
    def plan(self) -> Plan:
        """The plan, parsed on first use."""
        return Plan.from_json(json.loads(self.plan_json))

    @property
    def cost(self) -> float:
        """The cost that the study minimises, such as the bytes of the weight file."""
        return self.cost_of(self.minimised)

    def cost_of(self, name: str) -> float:
        """Return a cost by name.

        Raises:
            ConfigError: If the study neither limits nor minimises it.
        """
        if name == WEIGHT_BYTES:
            return self.weight_bytes
        if name not in self.costs:
            raise ConfigError(
                f"trial {self.number} has no {name}: its study neither limits nor minimises it, "
                f"but {', '.join(self.costs) or WEIGHT_BYTES}."
            )
        return self.costs[name]

    def source_of(self, name: str) -> str:
        """Return where a cost comes from; the times of old trials are all modelled."""
        return self.sources.get(name, MODELLED if name in TIMES else EXACT)

    @property
    def within_limits(self) -> bool:
        """Whether every constraint but the fidelity holds."""
        limits = {name: value for name, value in self.constraints.items() if name != FIDELITY}
        return all(value <= 0 for value in limits.values())

    @property
    def feasible(self) -> bool:
        """Whether it was measured to the top and holds every limit, so may be on the front."""
        return self.state == "COMPLETE" and all(v <= 0 for v in self.constraints.values())


def to_record(
    trial: FrozenTrial,
    metric: str,
    finished: FinishedRecord | None = None,
    minimised: str = WEIGHT_BYTES,
) -> TrialRecord:
    """Return the record of a trial of ours.

    Args:
        trial: The trial.
        metric: Name of the study's metric.
        finished: Its artefact.
        minimised: Name of the cost that the study minimises.
    """
    attrs = trial.user_attrs
    measured = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return TrialRecord(
        number=trial.number,
        logical=attrs["logical"],
        state=trial.state.name,
        origin=attrs["origin"],
        family=attrs["family"],
        plan_json=attrs["plan"],
        digest=attrs["digest"],
        params=trial.params,
        weight_bytes=attrs["weight_bytes"],
        constraints=trial.constraints,
        loss=attrs.get(metric) if measured else None,
        unit_loss=tuple(attrs.get("unit_loss", ())),
        tokens=attrs.get("tokens", 0),
        reason=attrs.get("reason", ""),
        seconds=attrs.get("seconds", 0.0),
        measurement=attrs.get("measurement", {}),
        finished=finished,
        details=attrs.get("proposal", {}),
        costs=attrs.get("costs", {}),
        sources=attrs.get("cost_sources", {}),
        minimised=minimised,
    )
