"""What a study holds, as plain frozen data."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

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
    """

    logical: int
    params: Mapping[str, int]
    distributions: Mapping[str, IntDistribution]
    plan: Plan
    origin: str
    family: str
    weight_bytes: int
    constraints: Mapping[str, float] = field(default_factory=dict)

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes of the trial."""
        return {
            "logical": self.logical,
            "origin": self.origin,
            "family": self.family,
            "weight_bytes": self.weight_bytes,
            "digest": self.plan.digest,
            "plan": self.plan.canonical(),
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """A KL on a prefix of the search text.

    Args:
        kl_nats: Mean KL to the base, nats a token.
        window_kl: KL of each window, nats a token.
        tokens: Tokens read; the rung.
        seconds: Wall time of the evaluation.
    """

    kl_nats: float
    window_kl: tuple[float, ...] = ()
    tokens: int = 0
    seconds: float = 0.0

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes of a trial so measured."""
        return {
            "kl_nats": self.kl_nats,
            "window_kl": list(self.window_kl),
            "tokens": self.tokens,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class FinishedRecord:
    """A finished artefact, measured from its file on held-out text.

    Args:
        number: Trial number.
        artefact: Folder, relative to the study directory.
        heldout_kl_nats: KL to the base, nats a token.
        heldout_se: Standard error of that mean over windows.
        perplexity: Of the held-out text under the artefact.
        weight_bytes: Size of the weight file on disk.
        base_perplexity: Of the same text under the base model.
        corpus: Name of the text.
        window: Window length, tokens.
        tokens: Held-out tokens read.
        seconds: Wall time of finishing and measuring.
        finish: Token of what tuned its blocks, or ``none``.
        recovery: Token of the training that made it from the plainly finished one; empty for
            that one.
    """

    number: int
    artefact: str
    heldout_kl_nats: float
    heldout_se: float
    perplexity: float
    weight_bytes: int
    base_perplexity: float | None = None
    corpus: str = ""
    window: int = 0
    tokens: int = 0
    seconds: float = 0.0
    finish: str = ""
    recovery: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FinishedRecord":
        """Return the record of its JSON form."""
        return cls(**data)


def quality(finished: FinishedRecord) -> tuple[float, int, int, str]:
    """Return what finished artefacts are ordered by, best first: held-out KL, then bytes."""
    return finished.heldout_kl_nats, finished.weight_bytes, finished.number, finished.recovery


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
        kl_nats: KL on the ``tokens`` read, nats a token; ``None`` if never measured.
        window_kl: KL of each window, nats a token.
        tokens: Tokens of the search text read.
        reason: Why it was stopped, refused or failed.
        seconds: Wall time of the evaluation.
        finished: Its artefact, if there is one; the best, where it was trained too.
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
    kl_nats: float | None = None
    window_kl: tuple[float, ...] = field(default=(), repr=False)
    tokens: int = 0
    reason: str = ""
    seconds: float = 0.0
    finished: FinishedRecord | None = None

    @cached_property
    def plan(self) -> Plan:
        """The plan, parsed on first use."""
        return Plan.from_json(json.loads(self.plan_json))

    @property
    def within_limits(self) -> bool:
        """Whether every constraint but the fidelity holds."""
        limits = {name: value for name, value in self.constraints.items() if name != FIDELITY}
        return all(value <= 0 for value in limits.values())

    @property
    def feasible(self) -> bool:
        """Whether it was measured to the top and holds every limit, so may be on the front."""
        return self.state == "COMPLETE" and all(v <= 0 for v in self.constraints.values())


def to_record(trial: FrozenTrial, finished: FinishedRecord | None = None) -> TrialRecord:
    """Return the record of a trial of ours."""
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
        kl_nats=attrs.get("kl_nats") if measured else None,
        window_kl=tuple(attrs.get("window_kl", ())),
        tokens=attrs.get("tokens", 0),
        reason=attrs.get("reason", ""),
        seconds=attrs.get("seconds", 0.0),
        finished=finished,
    )
