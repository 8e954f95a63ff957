"""Where the command line writes: results to standard output, everything else to standard error."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from autocomp.core.progress import Progress, Silent
from autocomp.env import log_level, no_color

PLAIN_WIDTH = 120
LINE_SECONDS = 10.0


def console(*, stderr: bool = False) -> Console:
    """Return a console; 120 columns wide where no terminal says otherwise."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, no_color=no_color() or None, highlight=False)


def show(*parts: RenderableType) -> None:
    """Print results."""
    out = console()
    for part in parts:
        out.print(part, soft_wrap=isinstance(part, str), markup=False)


def say(text: str) -> None:
    """Print one line to standard error."""
    console(stderr=True).print(text, markup=False, soft_wrap=True)


def show_json(data: Any) -> None:
    """Print JSON, the only thing on standard output."""
    print(json.dumps(data, indent=2, default=str, allow_nan=True))


def set_up_logging() -> None:
    """Send the package's log to standard error at the level of ``AUTOCOMP_LOG_LEVEL``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("autocomp")
    logger.handlers[:] = [handler]
    logger.setLevel(log_level())


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Yield a listener: bars on a terminal, plain lines elsewhere, nothing when quiet."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty():
        bars = _Bars()
        with bars.display:
            yield bars
    else:
        yield _Lines()


class _Bars:
    """Draws one bar a stage; finished stages stay as one line."""

    def __init__(self) -> None:
        self.display = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console(stderr=True),
            transient=True,
        )
        self.stages: list[tuple[Any, str, float]] = []

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        task = self.display.add_task(stage, total=total, unit=unit, note="")
        self.stages.append((task, stage, time.monotonic()))

    def advance(self, amount: int = 1, note: str = "") -> None:
        if self.stages:
            self.display.update(self.stages[-1][0], advance=amount, note=note)

    def finish(self, summary: str = "") -> None:
        if self.stages:
            task, stage, began = self.stages.pop()
            self.display.remove_task(task)
            self.log(_done(stage, began, summary))

    def log(self, text: str) -> None:
        self.display.console.print(text, markup=False, highlight=False)


class _Lines:
    """Prints a line when a stage begins and ends, and one every ten seconds between."""

    def __init__(self) -> None:
        self.stages: list[_Stage] = []

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        self.stages.append(_Stage(stage, total, unit))
        self.log(f"{stage}{'' if total is None else f': {total} {unit}'.rstrip()} …")

    def advance(self, amount: int = 1, note: str = "") -> None:
        if not self.stages:
            return
        stage = self.stages[-1]
        stage.done += amount
        if time.monotonic() - stage.said >= LINE_SECONDS:
            stage.said = time.monotonic()
            of = "" if stage.total is None else f"/{stage.total}"
            self.log(f"{stage.name}: {stage.done}{of} {stage.unit} {note}".rstrip())

    def finish(self, summary: str = "") -> None:
        if self.stages:
            stage = self.stages.pop()
            self.log(_done(stage.name, stage.began, summary))

    def log(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Stage:
    """A stage under way."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.began = self.said = time.monotonic()


def _done(stage: str, began: float, summary: str) -> str:
    end = f": {summary}" if summary else ""
    return f"{stage} done in {time.monotonic() - began:.1f} s{end}"
