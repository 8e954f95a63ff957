"""The loss that a search minimises, measured a unit at a time: windows, or examples of tasks.

Every plan reads the same units in the same order, few first, so that plans are compared in pairs.
What decides between finished plans is held out: other text, other examples.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from transformers import PreTrainedModel

from autocomp.config import ObjectiveConfig
from autocomp.core.metric import KL, PERPLEXITY, TASK_ERROR
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.evaluate.body import plan_states
from autocomp.evaluate.divergence import WindowScores
from autocomp.evaluate.record import DataRead, Metric
from autocomp.evaluate.summary import data_read, mean_metric, perplexity_metric
from autocomp.evaluate.tasks import TaskSuite, task_names
from autocomp.search.workbench import Workbench

HELDOUT_STEP = 32


class Objective(Protocol):
    """A loss of assembled plans with a fidelity ladder of its own.

    ``name`` is that of the metric, ``unit`` what it is a mean over, and ``digest`` identifies all
    that it reads.
    """

    name: str
    unit: str
    digest: str

    @property
    def ladder(self) -> tuple[int, ...]:
        """Units a rung, smallest first; the last is full fidelity."""

    @property
    def floor_nats(self) -> float | None:
        """What is subtracted from a KL; ``None`` where none is measured."""

    @property
    def reference_tokens(self) -> int:
        """Tokens on which the base is read before any plan."""

    def prepare(self) -> None:
        """Read what plans are compared with, which restores the live candidate."""

    def metric(self, losses: Sequence[float]) -> Metric:
        """Return the metric over some units with its standard error."""

    def measure(
        self, bench: Workbench, plan: Plan, start: int, stop: int
    ) -> tuple[Sequence[float], int]:
        """Return the loss of units ``start`` to ``stop``, and the tokens that were read.

        Args:
            bench: Of the plan's variant; its live candidate holds the plan.
            plan: The plan.
            start: First unit.
            stop: Unit after the last.
        """

    def read(self, units: int, tokens: int) -> DataRead:
        """Return the record of the first units of what the search reads."""

    def measure_heldout(
        self, model: PreTrainedModel, progress: Progress
    ) -> tuple[Sequence[float], DataRead] | None:
        """Return the loss of each held-out unit and what was read.

        ``None`` where it is of the held-out text, whose figures are measured of every model.
        """


class _TextObjective:
    """A loss on the search text, a window at a time.

    Args:
        bench: The base's workbench.
    """

    unit = "window"

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._windows = bench.search_text
        self.digest = self._windows.digest

    @property
    def ladder(self) -> tuple[int, ...]:
        """Windows a rung."""
        return self._bench.ladder.windows

    @property
    def reference_tokens(self) -> int:
        """Tokens of the search text."""
        return self._windows.tokens

    def prepare(self) -> None:
        """Read the base on the search text, once."""
        _ = self._bench.search_meter

    def _scores(self, bench: Workbench, plan: Plan, start: int, stop: int) -> WindowScores:
        meter, token = self._bench.search_meter, bench.head_token(plan.layers)
        state = plan_states(bench.sketch, plan)
        return meter.measure(bench.model, range(start, stop), head_token=token, state=state)

    def read(self, units: int, tokens: int) -> DataRead:
        """Return the record of the first windows."""
        return replace(data_read(self._windows), units=units, tokens=tokens)

    def measure_heldout(self, model: PreTrainedModel, progress: Progress) -> None:
        """Leave it to the held-out text."""


class KlObjective(_TextObjective):
    """KL to the base on the search text, nats a token.

    Args:
        bench: The base's workbench.
    """

    name = KL

    @property
    def floor_nats(self) -> float:
        """KL of the base in the candidates' arithmetic."""
        return self._bench.search_meter.floor_nats

    def metric(self, losses: Sequence[float]) -> Metric:
        """Return the mean over windows."""
        return mean_metric(losses)

    def measure(
        self, bench: Workbench, plan: Plan, start: int, stop: int
    ) -> tuple[Sequence[float], int]:
        """Return the KL of some windows; see :class:`Objective`."""
        scores = self._scores(bench, plan, start, stop)
        return scores.kl_nats, (stop - start) * self._windows.length


class PerplexityObjective(_TextObjective):
    """Perplexity of the search text; the loss of a window is its cross entropy, nats a token.

    ``exp(1/n Σ_i nll_i)`` over n windows. Gates and intervals compare cross entropies a window,
    which order plans alike.

    Args:
        bench: The base's workbench.
    """

    name = PERPLEXITY
    floor_nats = None

    def metric(self, losses: Sequence[float]) -> Metric:
        """Return the exponential of the mean over windows."""
        return perplexity_metric(losses)

    def measure(
        self, bench: Workbench, plan: Plan, start: int, stop: int
    ) -> tuple[Sequence[float], int]:
        """Return the cross entropy of some windows; see :class:`Objective`."""
        scores = self._scores(bench, plan, start, stop)
        return scores.nll_nats, (stop - start) * self._windows.length


class TaskErrorObjective:
    """1 less the accuracy on tasks, an example at a time.

    Where the tasks have fewer examples than were asked for, search and held-out part shrink alike.

    Args:
        bench: The base's workbench.

    Raises:
        ConfigError: If a task is unknown, its data cannot be read, or there are too few examples.
    """

    name = TASK_ERROR
    unit = "example"
    floor_nats = None
    reference_tokens = 0

    def __init__(self, bench: Workbench) -> None:
        chosen = bench.config.objective
        top = chosen.rungs[-1]
        wanted = top + chosen.heldout_examples
        suite = TaskSuite(
            bench.loaded.tokenizer,
            chosen.tasks,
            data_dir=chosen.data_dir,
            limit=math.ceil(wanted / len(task_names(chosen.tasks))),
        )
        self.digest = suite.digest
        self._name, self._seed = suite.name, suite.seed
        self._search, self._heldout = suite.split(top / wanted)
        self.ladder = tuple(sorted({min(rung, self._search.units) for rung in chosen.rungs}))

    def prepare(self) -> None:
        """Read nothing: an error is not relative to a base."""

    def metric(self, losses: Sequence[float]) -> Metric:
        """Return the mean over examples."""
        return mean_metric(losses)

    def measure(
        self, bench: Workbench, plan: Plan, start: int, stop: int
    ) -> tuple[Sequence[float], int]:
        """Return the error of some examples; see :class:`Objective`."""
        return self._search.errors(bench.model, start, stop)

    def read(self, units: int, tokens: int) -> DataRead:
        """Return the record of the first examples."""
        return self._read(self._search, "search", units, tokens)

    def measure_heldout(
        self, model: PreTrainedModel, progress: Progress
    ) -> tuple[Sequence[float], DataRead]:
        """Return the error of each held-out example."""
        errors: list[float] = []
        tokens, units = 0, self._heldout.units
        progress.start("measure held-out", units, "example")
        for start in range(0, units, HELDOUT_STEP):
            found, read = self._heldout.errors(model, start, min(start + HELDOUT_STEP, units))
            errors += found
            tokens += read
            progress.advance(len(found))
        progress.finish()
        return errors, self._read(self._heldout, "heldout", units, tokens)

    def _read(self, suite: TaskSuite, split: str, units: int, tokens: int) -> DataRead:
        return DataRead(
            name=self._name,
            digest=suite.digest,
            units=units,
            tokens=tokens,
            split=split,
            seed=self._seed,
        )


def check_objective(config: ObjectiveConfig) -> None:
    """Refuse unknown tasks, before any work.

    Raises:
        ConfigError: If a task is unknown; the message lists the nearest names.
    """
    if config.tasks:
        task_names(config.tasks)


def objective_of(bench: Workbench) -> Objective:
    """Return the objective of a study, its data read.

    Args:
        bench: The base's workbench.

    Raises:
        ConfigError: If the data cannot be read or is too little.
    """
    chosen = bench.config.objective.metric
    if chosen == TASK_ERROR:
        return TaskErrorObjective(bench)
    return KlObjective(bench) if chosen == KL else PerplexityObjective(bench)
