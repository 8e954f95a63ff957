"""``autocomp ls``: what there is to choose from."""

import inspect
from dataclasses import asdict
from typing import Annotated, Any

from rich.table import Table
from typer import Argument

from autocomp.cli.console import show, show_json
from autocomp.cli.options import Output
from autocomp.config import presets
from autocomp.core.errors import ConfigError
from autocomp.core.registry import (
    ALLOCATIONS,
    FORMATS,
    KERNELS,
    METHODS,
    SAMPLERS,
    SCORES,
    SPACES,
    Registry,
    nearest,
)
from autocomp.report.methods import MethodRow, method_rows

REGISTRIES = {
    "methods": METHODS,
    "spaces": SPACES,
    "kernels": KERNELS,
    "formats": FORMATS,
    "scores": SCORES,
    "samplers": SAMPLERS,
    "allocations": ALLOCATIONS,
}
MODELS = (
    {"name": "smollm2-135m", "summary": "embedded reference model, offline once installed"},
    {
        "name": "ID or FOLDER",
        "summary": "Llama, Mistral, Qwen, Gemma, GPT-2, GPT-NeoX, OPT, Phi families",
    },
)
DATA = (
    {"name": "pydoc", "summary": "embedded: the English prose of CPython's pydoc_data.topics"},
    {"name": "wikitext2", "summary": "through datasets (extra: eval)"},
    {"name": "c4", "summary": "through datasets (extra: eval)"},
    {"name": "ptb", "summary": "through datasets (extra: eval)"},
    {"name": "PATH.txt, .raw, .jsonl", "summary": "your own text; key 'text' in JSON lines"},
)
KINDS = (*REGISTRIES, "models", "data", "tasks", "presets", "devices")


def ls(
    kind: Annotated[str, Argument(help=", ".join(KINDS))],
    output: Output,
) -> None:
    """List what there is to choose from: methods, spaces, samplers and all other tables.

    - `autocomp ls methods`
    - `autocomp ls spaces --json`
    """
    if kind not in KINDS:
        raise ConfigError(
            f"cannot list {kind!r}.{nearest(kind, list(KINDS))} Known: {', '.join(KINDS)}."
        )
    rows = listing(kind)
    if output.json:
        show_json(rows)
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=kind, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    show(table)


def listing(kind: str) -> list[dict[str, str]]:
    """Return one row an entry, with at least ``name`` and ``summary``."""
    if kind == "models":
        return list(MODELS)
    if kind == "data":
        return list(DATA)
    if kind == "tasks":
        return _tasks()
    if kind == "devices":
        return _devices()
    if kind == "presets":
        return [
            {"name": name, "summary": text.splitlines()[0].lstrip("# ")}
            for name, text in presets().items()
        ]
    if kind == "kernels":
        return _kernels()
    if kind == "methods":
        return [_method(row) for row in method_rows()]
    registry: Registry = REGISTRIES[kind]
    return [{"name": name, **_describe(registry[name])} for name in registry]


def _tasks() -> list[dict[str, str]]:
    """Return the tasks of lm-eval, and the suites that they make."""
    from autocomp.evaluate.tasks import SUITES, TASKS

    rows = [
        {
            "name": name,
            "summary": f"{task.headline or 'word perplexity'} on the {task.split} part",
            "suites": ", ".join(suite for suite, names in SUITES.items() if name in names),
        }
        for name, task in TASKS.items()
    ]
    suites = [{"name": name, "summary": ", ".join(names)} for name, names in SUITES.items()]
    return rows + suites


def _kernels() -> list[dict[str, str]]:
    """Return the back-ends of every operation in the order of trial, and why some do not run."""
    return [
        {
            "name": name,
            "backend": backend.name,
            "runs here": "yes" if (reason := backend.why_not_here()) is None else f"no: {reason}",
            "priority": str(backend.priority),
            "devices": ", ".join(backend.devices) or "any",
            "dtypes": ", ".join(backend.dtypes) or "any",
            "takes": backend.rule,
            "summary": backend.summary,
        }
        for name, operation in KERNELS.items()
        for backend in operation.backends
    ]


def _devices() -> list[dict[str, str]]:
    """Return the devices that a time can be of, with their peak figures."""
    from autocomp.cost.device import Device, device_names
    from autocomp.cost.times import measured_devices

    measured = measured_devices()
    return [
        {
            "name": name,
            "summary": (found := Device.named(name)).name,
            "memory": f"{found.memory_bandwidth_bytes_per_s / 1e9:.4g} GB/s",
            "peak": f"{found.peak_flops_per_s / 1e12:.4g} TFLOP/s",
            "times": "measured" if name in measured else "modelled",
            "source": found.source,
        }
        for name in device_names()
    ]


def _method(row: MethodRow) -> dict[str, str]:
    """Return a method as texts, the longest last."""
    values = {name: value for name, value in asdict(row).items() if name != "summary"}
    texts = {
        name: ", ".join(value) if isinstance(value, tuple) else str(value).replace("`", "")
        for name, value in values.items()
    }
    return texts | {"paper": row.paper, "summary": row.summary}


def _describe(thing: Any) -> dict[str, str]:
    document = (inspect.getdoc(thing) or "").partition("\n")[0]
    row = {"summary": getattr(thing, "summary", None) or document}
    for name in ("reference", "version"):
        if isinstance(getattr(thing, name, None), str | int):
            row[name] = str(getattr(thing, name))
    return row
