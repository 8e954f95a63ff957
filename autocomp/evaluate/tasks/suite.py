"""Accuracy on tasks as something to search by: fixed examples, read a few at a time."""

import math
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autocomp.core.errors import ConfigError
from autocomp.core.seeds import SeedTree
from autocomp.evaluate.tasks.harness import Forward, language_model, quiet
from autocomp.evaluate.tasks.run import check_limit, digest_of, loaded_tasks
from autocomp.evaluate.tasks.table import TASKS, task_names

MOST_CHOICES = 8


@dataclass(frozen=True, slots=True)
class _Example:
    """One example: its task, its row, and lm-eval's requests, one a choice."""

    task: Any
    row: Any
    requests: tuple[Any, ...]


class TaskSuite:
    """Examples of several tasks in one order, in which every prefix samples all tasks alike.

    The error of an example is 0 or 1: one minus the accuracy by which its task is usually
    reported. That is ``acc_norm``, where log-likelihoods are divided by the length of the choice,
    for ARC-Challenge, HellaSwag and OpenBookQA, and ``acc`` for the others.

    Requests are built once. An example's choices are scored in one pass of their own, so its error
    does not depend on which others are read with it.

    Args:
        tokenizer: Of the models that will be measured.
        tasks: Names of tasks or suites.
        data_dir: Holds the datasets' files; ``None`` reads the hub.
        limit: Examples of each task, drawn by the seed; ``None`` is all.
        seed: Seed of the draw and of the order.

    Raises:
        ConfigError: If a name or a number is wrong, a task has no accuracy, data cannot be read,
            or lm-eval is missing.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tasks: str | Sequence[str],
        *,
        data_dir: Path | str | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        names = task_names(tasks)
        without = [name for name in names if TASKS[name].headline is None]
        if without:
            raise ConfigError(f"{', '.join(without)} has no accuracy to search by; leave it out.")
        check_limit(limit)
        self.name = tasks if isinstance(tasks, str) else ",".join(tasks)
        self.seed = seed
        self._tokenizer = deepcopy(tokenizer)
        with loaded_tasks(names, data_dir) as loaded, quiet():
            drawn = {name: _draw(name, loaded[name], limit, seed) for name in names}
        self._examples = _interleaved(list(drawn.values()))

    @property
    def units(self) -> int:
        """Examples in all."""
        return len(self._examples)

    @property
    def digest(self) -> str:
        """Sha256 over the tasks' names and examples in order, hexadecimal."""
        return digest_of((example.task.task_name, example.row) for example in self._examples)

    def split(self, fraction: float = 0.5) -> tuple[Self, Self]:
        """Return the first examples and the rest, to search by and to decide by.

        Args:
            fraction: Share of the first part.

        Raises:
            ConfigError: If a part would be empty.
        """
        count = round(fraction * self.units)
        if not 0 < count < self.units:
            raise ConfigError(
                f"{fraction} of {self.units} examples leaves one part empty; give a fraction "
                "between 0 and 1, or more examples."
            )
        return self._part("search", 0, count), self._part("heldout", count, self.units)

    def _part(self, split: str, start: int, stop: int) -> Self:
        """Return a suite of some of the examples."""
        part = copy(self)
        part.name = f"{self.name}:{split}"
        part._examples = self._examples[start:stop]
        return part

    def errors(
        self, model: PreTrainedModel, start: int, stop: int
    ) -> tuple[tuple[float, ...], int]:
        """Measure a model on the examples from ``start`` to ``stop``.

        Args:
            model: Dense, packed, or a live candidate; compressed caches count as in decoding.
            start: Index of the first example.
            stop: Index behind the last, at most :attr:`units`.

        Returns:
            The error of each example, 0 or 1, NaN where the model gives none; and the tokens that
            went through the model.

        Raises:
            ConfigError: If the range does not lie within the examples.
        """
        if not 0 <= start <= stop <= self.units:
            raise ConfigError(
                f"examples {start} to {stop} were asked for of a suite of {self.units}."
            )
        forward = Forward(model)
        with quiet():
            adapted = language_model(forward, self._tokenizer, MOST_CHOICES)
            errors = tuple(_error(adapted, example) for example in self._examples[start:stop])
        return errors, forward.tokens


def _draw(name: str, task: Any, limit: int | None, seed: int) -> list[_Example]:
    """Return examples of a task in a seeded order."""
    count = len(task.eval_docs)
    order = SeedTree(seed).child("tasks", name).numpy().permutation(count)[:limit].tolist()
    chosen = sorted(order)
    task.build_all_requests(samples=set(order))
    requests: dict[int, list[Any]] = {}
    for request in task.instances:  # numbered by their place among the chosen
        requests.setdefault(chosen[request.doc_id], []).append(request)
    return [_Example(task, requests[row][0].doc, tuple(requests[row])) for row in order]


def _interleaved(groups: Sequence[list[_Example]]) -> list[_Example]:
    """Return examples in an order in which each group is spread evenly, kept in its own order."""
    placed = [
        ((place + 0.5) / len(group), index, example)
        for index, group in enumerate(groups)
        for place, example in enumerate(group)
    ]
    return [example for *_, example in sorted(placed, key=lambda item: item[:2])]


def _error(adapted: Any, example: _Example) -> float:
    """Return one minus the headline accuracy of an example."""
    answers = adapted.loglikelihood(list(example.requests), disable_tqdm=True)
    if any(math.isnan(value) for value, _ in answers):
        return math.nan
    metrics = example.task.process_results(example.row, answers)
    return 1.0 - float(metrics[TASKS[example.task.task_name].headline])
