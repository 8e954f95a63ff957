"""Measuring a model in memory on tasks, through lm-eval."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autocomp.core.errors import ConfigError
from autocomp.core.progress import Progress, Silent
from autocomp.evaluate.record import DataRead, Measurement, Metric, hardware
from autocomp.evaluate.tasks.harness import (
    Forward,
    definition,
    language_model,
    load_tasks,
    quiet,
)
from autocomp.evaluate.tasks.local import write_tasks
from autocomp.evaluate.tasks.table import TASKS, task_names

_ERROR = "_stderr"


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str],
    *,
    data_dir: Path | str | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure a model on tasks, without examples in the prompt.

    Figures and standard errors are lm-eval's. With one request a pass and the same dtype they
    equal those of its command line; larger batches pad, which moves the last bits.

    Args:
        model: Dense, packed, or a live candidate of a search; compressed key/value caches count as
            in decoding.
        tokenizer: Its tokenizer.
        tasks: Names of tasks or suites.
        data_dir: Holds the datasets' files, and the network is not used; ``None`` reads the hub.
        limit: The first examples of each task; ``None`` is all.
        batch_size: Requests a forward pass.
        progress: Told the tokens of each task.

    Returns:
        One measurement a task.

    Raises:
        ConfigError: If a name or a number is wrong, data cannot be read, or lm-eval is missing.
    """
    names = task_names(tasks)
    check_limit(limit)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; at least one request a pass is needed.")
    listener, found = progress or Silent(), []
    with loaded_tasks(names, data_dir) as loaded:
        for name in names:
            listener.start(name, None, "tokens")
            forward = Forward(model, listener.advance)
            found.append(_measure(name, loaded[name], forward, tokenizer, limit, batch_size))
            listener.finish(_summary(found[-1].metrics))
    return found


def _measure(
    name: str,
    task: Any,
    forward: Forward,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    batch_size: int,
) -> Measurement:
    """Measure one task."""
    from lm_eval.evaluator import evaluate

    began = time.perf_counter()
    with quiet():
        adapted = language_model(forward, tokenizer, batch_size)
        answer = evaluate(adapted, {"tasks": {name: task}}, limit=limit)
    examples = [sample["doc"] for sample in answer["samples"][name]]
    return Measurement(
        metrics=metrics_of(answer["results"][name]),
        data=DataRead(
            name=name,
            digest=digest_of(examples),
            units=len(examples),
            tokens=forward.tokens,
            split=TASKS[name].split,
        ),
        dtype=str(forward.model.dtype).removeprefix("torch."),
        device=forward.device.type,
        hardware=hardware(forward.device),
        seconds=time.perf_counter() - began,
    )


def metrics_of(results: Mapping[str, Any]) -> dict[str, Metric]:
    """Return lm-eval's results of a task, ``acc,none`` and ``acc_stderr,none``, by metric."""
    found = {}
    for key, value in results.items():
        name, comma, filter_name = key.partition(",")
        if comma and not name.endswith(_ERROR):
            error = results.get(f"{name}{_ERROR},{filter_name}")
            found[name] = Metric(
                float(value), float(error) if isinstance(error, int | float) else None
            )
    return found


def digest_of(examples: Iterable[Any]) -> str:
    """Return the sha256 over examples in the order given, hexadecimal."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{json.dumps(example, sort_keys=True)}\n".encode())
    return digest.hexdigest()


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves nothing.

    Raises:
        ConfigError: If it is below one.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"a limit of {limit} examples a task leaves nothing; give 1 or more.")


@contextmanager
def loaded_tasks(names: Sequence[str], data_dir: Path | str | None) -> Iterator[dict[str, Any]]:
    """Yield lm-eval's task objects by name; their data may go when the block ends.

    Args:
        names: Of tasks.
        data_dir: Holds the datasets' files; ``None`` reads the hub.
    """
    if data_dir is None:
        with quiet():
            tasks = load_tasks({name: definition(name) for name in names})
        yield tasks
        return
    with TemporaryDirectory(prefix="autocomp-tasks-") as temporary:
        folder = Path(temporary) / "tasks"
        write_tasks(data_dir, folder, names)
        with quiet():
            tasks = load_tasks({name: folder / f"{name}.yaml" for name in names})
        yield tasks


def _summary(metrics: Mapping[str, Metric]) -> str:
    """Return the figures in a line."""
    return ", ".join(f"{name} {metric.value:.4g}" for name, metric in metrics.items())
