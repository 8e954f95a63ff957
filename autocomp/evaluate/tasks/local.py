"""A folder of tasks that lm-eval reads with ``--include_path``: its own tasks on local files."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autocomp.core.errors import ConfigError
from autocomp.evaluate.tasks.harness import definition
from autocomp.evaluate.tasks.table import TASKS, task_names
from autocomp.layers.folder import atomic_folder


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A task that was written.

    Args:
        name: As lm-eval knows it.
        source: The file that its examples come from.
        examples: How many.
    """

    name: str
    source: Path
    examples: int


def write_tasks(
    data_dir: Path | str, out: Path | str, tasks: str | Sequence[str] = "zero-shot"
) -> tuple[LocalTask, ...]:
    """Write tasks that read local files, whole or not at all, replacing what was there.

    Each task is ``NAME.yaml``, which includes lm-eval's own definition and overrides where the
    data comes from, and a folder ``NAME`` with the examples as JSON lines in the hub's columns.
    The names are lm-eval's own: a task of an include path takes the place of the built-in one.
    Paths are absolute, so a folder that was moved has to be written again.

    Args:
        data_dir: Searched for the datasets' files, with all folders below.
        out: The folder.
        tasks: Names of tasks or suites.

    Raises:
        ConfigError: If a name is unknown, a file is missing or not what it should be, or lm-eval
            is not installed.
        StoreError: If the folder cannot be written.
    """
    names = task_names(tasks)
    sources = {name: TASKS[name].adapter.find(Path(data_dir)) for name in names}
    final = Path(os.path.abspath(out))
    written = []
    with atomic_folder(final) as folder:
        for name, source in sources.items():
            rows = list(TASKS[name].adapter.rows(source))
            if not rows:
                raise ConfigError(f"{source} holds no examples.")
            data = folder / name / f"{TASKS[name].split}.jsonl"
            data.parent.mkdir()
            data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            text = yaml.safe_dump(_overrides(name, final), sort_keys=False)
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
            written.append(LocalTask(name, source, len(rows)))
    return tuple(written)


def _overrides(name: str, folder: Path) -> dict[str, Any]:
    """Return lm-eval's task with the data of a folder.

    A folder is read without a request to the hub, which a data set called "json" would make. Tags
    are left to the built-in tasks.
    """
    split = TASKS[name].split
    return {
        "include": str(definition(name)),
        "task": name,
        "tag": None,
        "dataset_path": str(folder / name),
        "dataset_name": None,
        "dataset_kwargs": {"cache_dir": str(folder / "cache")},
        "training_split": None,
        "validation_split": split if split == "validation" else None,
        "test_split": split if split == "test" else None,
    }
