"""The question that a sampler answers: what to try next, given what is known.

A sampler is a function from an :class:`Ask` to a :class:`Proposal`, named in a table. It
is pure: what it returns depends on the seed, the logical number, the trials told before that
number, and reads of the model that give the same whenever they are made. So a study that was
killed goes on as if nothing had happened.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from autocomp.core.plan import Plan
from autocomp.core.seeds import SeedTree
from autocomp.search.context import SearchContext


class Told(Protocol):
    """What a sampler reads of a trial; one that is running has no loss yet."""

    @property
    def number(self) -> int:
        """Number of the trial in its study."""

    @property
    def logical(self) -> int:
        """Logical number of the trial."""

    @property
    def params(self) -> Mapping[str, int]:
        """Option index by group name."""

    @property
    def state(self) -> str:
        """``COMPLETE`` when measured to the top rung."""

    @property
    def loss(self) -> float | None:
        """The study's metric at the highest rung that was reached."""

    @property
    def origin(self) -> str:
        """What proposed it."""

    @property
    def details(self) -> Mapping[str, Any]:
        """What its sampler kept of the proposal."""


@dataclass(frozen=True)
class Proposal:
    """A plan to measure.

    Args:
        logical: Logical number of the trial.
        params: Canonical option index by group name.
        plan: What the parameters decode to.
        origin: What made it, such as ``uniform``, ``probe:<family>`` or ``step``.
        family: Family of the plan.
        details: What the sampler wants to read again of this trial, JSON values.
    """

    logical: int
    params: Mapping[str, int]
    plan: Plan
    origin: str
    family: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Linearisation:
    """First-order changes of the loss around a plan, by what would be done instead.

    Args:
        loss: Loss of the plan on the text that the gradient was taken on.
        options: By site, by spec token, ``⟨∂loss/∂Ŵ, Ŵ_option − Ŵ_plan⟩``; 0 for the plan's own.
            Sites whose options are no change of a weight are absent.
        drop: By sub-block that the plan keeps, ``−⟨∂loss/∂y, y⟩`` of its output y.
    """

    loss: float
    options: Mapping[str, Mapping[str, float]]
    drop: Mapping[str, float]


class Oracle(Protocol):
    """Reads of the model that a sampler may ask for, on text that no trial is measured on."""

    @property
    def pool(self) -> int:
        """How many units of text :meth:`losses` may read."""

    @property
    def parts(self) -> int:
        """How many parts of the text :meth:`linearised` may read; 0 where there is no gradient."""

    def losses(self, plan: Plan, units: Sequence[int]) -> tuple[float, ...]:
        """Return the loss of a plan on some units of the pool."""

    def linearised(self, plan: Plan, part: int) -> Linearisation:
        """Return the first-order changes around a plan on one part of the text."""


class NoOracle:
    """The oracle of a search without a model."""

    pool = parts = 0

    def losses(self, plan: Plan, units: Sequence[int]) -> tuple[float, ...]:
        """Refuse, for there is no text."""
        raise LookupError("a search without a model has no text to read")

    def linearised(self, plan: Plan, part: int) -> Linearisation:
        """Refuse, for there is no model."""
        raise LookupError("a search without a model has no gradient")


@dataclass(frozen=True)
class Ask:
    """What one proposal may depend on.

    Args:
        index: Logical number of the trial, from 0.
        seed: The study's seed; the trial uses ``seed.child("trial", index)``.
        contexts: What is searched, one a variant.
        trials: Trials of the study; only those with a smaller logical number are looked at.
        oracle: Reads of the model.
        moves: Names of the moves that the sampler may make; empty allows all.
    """

    index: int
    seed: SeedTree
    contexts: Sequence[SearchContext]
    trials: Sequence[Told]
    oracle: Oracle = field(default_factory=NoOracle)
    moves: tuple[str, ...] = ()

    @cached_property
    def told(self) -> tuple[Told, ...]:
        """The trials with a smaller logical number, in order."""
        earlier = (trial for trial in self.trials if trial.logical < self.index)
        return tuple(sorted(earlier, key=lambda trial: trial.logical))


Sampler = Callable[[Ask], Proposal | None]
"""Returns the next proposal; ``None`` when no new plan is left to try."""
