"""Measured times of operations and whole models as data: one JSON file a device.

A file holds the conditions under which everything in it was measured (hardware, dtype, threads,
versions), so that a device name stands for one set of conditions, and a checksum, so that a file
that was cut off or edited is noticed.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autocomp.core.errors import ConfigError, StoreError
from autocomp.env import times_dir

VERSION = 1

LINEAR, EMBEDDING, TIED_HEAD = "linear", "embedding", "tied-head"
DECODE, PREFILL = "decode", "prefill"
"""Phases: one token of every sequence at the end of the context; the whole context at once."""


@dataclass(frozen=True, slots=True)
class OpKey:
    """What was timed: equal keys take the same time under equal conditions.

    Args:
        op: ``linear``, ``embedding`` (a look-up), ``tied-head`` (logits through a packed table),
            ``decode-attention`` or ``prefill-attention`` (the cache's update and the product).
        shape: (out, in) of a weight; (heads, kv heads, width) of an attention.
        form: Digest of the weight's format, as methods that store alike run alike; of an
            attention the token of its cache.
        rows: Vectors that go through at once.
        context: Tokens that an attention attends to; 0 for a weight.
    """

    op: str
    shape: tuple[int, ...]
    form: str
    rows: int
    context: int = 0


@dataclass(frozen=True, slots=True)
class OpTime:
    """How long an operation took.

    Args:
        seconds: Median.
        noise: Half the interquartile range over the median.
        repeats: Samples.
        size: Bytes that it reads: what is stored, of a look-up the rows.
        flops: Operations.
        spec: Token that it was measured with.
    """

    seconds: float
    noise: float
    repeats: int
    size: int
    flops: int
    spec: str


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Of which models and what work an overhead is.

    Args:
        architecture: Family and width, such as ``llama-576``; depth and variants share it.
        phase: ``decode`` or ``prefill``.
        batch: Sequences.
        context: Tokens a sequence.
    """

    architecture: str
    phase: str
    batch: int
    context: int


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a model takes beside its operations: ``scale · Σ operations + fixed + Σ sub-blocks``.

    Args:
        scale: Time of an operation inside a model over its time alone.
        fixed_s: Of the model: final norm, positions, calls, seconds.
        attention_s: Of an attention that is kept: norm, rotary embedding, residual, seconds.
        mlp_s: Of an MLP that is kept: norm, activation, residual, seconds.
        runs: Whole models that it was fitted on.
        error: Median relative error on them.
    """

    scale: float = 1.0
    fixed_s: float = 0.0
    attention_s: float = 0.0
    mlp_s: float = 0.0
    runs: int = 0
    error: float = 0.0


@dataclass(frozen=True)
class Conditions:
    """Under which all times of a table were measured.

    Args:
        hardware: Processor with its threads, or card.
        dtype: Compute dtype, such as ``float32``.
        threads: Of torch.
        versions: Packages that decide the time.
    """

    hardware: str
    dtype: str
    threads: int
    versions: Mapping[str, str]

    def __str__(self) -> str:
        """Return them in one line."""
        versions = ", ".join(f"{name} {value}" for name, value in self.versions.items())
        return f"{self.hardware}, {self.dtype}, {versions}"


@dataclass(frozen=True)
class TimeTable:
    """The measured times of one device.

    Args:
        device: Name of the device.
        conditions: Under which all were measured.
        times: By operation.
        overheads: By model and work.
    """

    device: str
    conditions: Conditions
    times: Mapping[OpKey, OpTime] = field(default_factory=dict)
    overheads: Mapping[ModelKey, Overhead] = field(default_factory=dict)

    @classmethod
    def load(cls, device: str) -> "TimeTable":
        """Read the table of a device.

        Raises:
            ConfigError: If nothing was measured on it.
            StoreError: If the file is damaged.
        """
        path = path_of(device)
        if not path.is_file():
            known = ", ".join(measured_devices()) or "none"
            raise ConfigError(
                f"no times were measured on the device {device!r} (measured: {known}). Run "
                f"autocomp bench MODEL --name {device} on it, or take modelled times: --times "
                "modelled."
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            content, digest = data["content"], data["sha256"]
            if digest != _digest(content) or content["version"] != VERSION:
                raise ValueError("its checksum or version does not match")
            return cls(
                content["device"],
                Conditions(**content["conditions"]),
                {_op_key(row["key"]): OpTime(**row["time"]) for row in content["times"]},
                {ModelKey(**r["key"]): Overhead(**r["overhead"]) for r in content["overheads"]},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"the measured times in {path} are damaged: {error}. Remove the file and measure "
                f"again: autocomp bench MODEL --name {device}."
            ) from error

    @classmethod
    def open(cls, device: str, conditions: Conditions) -> "TimeTable":
        """Return the table of a device to add to, an empty one before anything was measured.

        Raises:
            ConfigError: If its times were measured under other conditions.
            StoreError: If the file is damaged.
        """
        if not path_of(device).is_file():
            return cls(device, conditions)
        found = cls.load(device)
        if found.conditions != conditions:
            raise ConfigError(
                f"the times of the device {device!r} were measured under other conditions "
                f"({found.conditions}) than these ({conditions}). Choose another --name, or "
                "start over with --fresh."
            )
        return found

    def save(self) -> Path:
        """Write the table in one step; return its path."""
        content: dict[str, Any] = {
            "version": VERSION,
            "device": self.device,
            "conditions": asdict(self.conditions),
            "times": [{"key": asdict(k), "time": asdict(t)} for k, t in self.times.items()],
            "overheads": [
                {"key": asdict(k), "overhead": asdict(o)} for k, o in self.overheads.items()
            ],
        }
        path = path_of(self.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        text = json.dumps({"sha256": _digest(content), "content": content}, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path

    def with_times(self, times: Mapping[OpKey, OpTime]) -> "TimeTable":
        """Return the table with some times added or replaced."""
        return replace(self, times={**self.times, **times})

    def with_overhead(self, key: ModelKey, overhead: Overhead) -> "TimeTable":
        """Return the table with the overhead of a model added or replaced."""
        return replace(self, overheads={**self.overheads, key: overhead})


def measured_devices() -> tuple[str, ...]:
    """Return the names of the devices on which times were measured, in order."""
    return tuple(sorted(path.stem for path in times_dir().glob("*.json")))


def path_of(device: str) -> Path:
    """Return where the times of a device lie."""
    return times_dir() / f"{device}.json"


def form_of(parts: Iterable[Any] | Mapping[str, Any]) -> str:
    """Return the digest of a JSON value that stands for a format, 16 hexadecimal digits."""
    return _digest(parts)[:16]


def _digest(content: Any) -> str:
    """Return the sha256 of the canonical JSON of a value."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _op_key(data: Mapping[str, Any]) -> OpKey:
    return OpKey(**{**data, "shape": tuple(data["shape"])})
