"""Wall time and memory of the stages of a search."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

TOTAL = "total"


def peak_rss_bytes() -> int:
    """Return the largest resident set of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@dataclass(slots=True)
class Stage:
    """What one stage took.

    Args:
        name: Name of the stage.
        seconds: Wall time, all visits together.
        visits: How often it was entered.
        peak_rss_bytes: Largest resident set of the process when it last ended.
    """

    name: str
    seconds: float = 0.0
    visits: int = 0
    peak_rss_bytes: int = 0


class Clock:
    """Adds up wall time by stage, in order of first use.

    Args:
        earlier: The table of earlier runs of the same search, to go on from.
    """

    def __init__(self, earlier: Sequence[Mapping[str, Any]] = ()) -> None:
        self.stages: dict[str, Stage] = {}
        self._started = time.perf_counter()
        for row in earlier:
            if row["stage"] == TOTAL:
                self._started -= row["seconds"]
            else:
                kept = (row["seconds"], row["visits"], row["peak_rss_bytes"])
                self.stages[row["stage"]] = Stage(row["stage"], *kept)

    def add(self, name: str, seconds: float) -> None:
        """Add a visit that was timed elsewhere."""
        stage = self.stages.setdefault(name, Stage(name))
        stage.seconds += seconds
        stage.visits += 1
        stage.peak_rss_bytes = max(stage.peak_rss_bytes, peak_rss_bytes())

    def seconds(self, name: str) -> float:
        """Return what a stage has taken so far."""
        return self.stages[name].seconds if name in self.stages else 0.0

    @contextmanager
    def time(self, name: str, without: str = "") -> Iterator[None]:
        """Time a block as one visit of a stage.

        Args:
            name: The stage.
            without: A stage inside the block, whose time does not count.
        """
        begun, inside = time.perf_counter(), self.seconds(without)
        try:
            yield
        finally:
            inside = self.seconds(without) - inside
            self.add(name, time.perf_counter() - begun - inside)

    def each(self, name: str, items: Iterator[T]) -> Iterator[T]:
        """Yield from an iterator, timing only what the iterator itself does."""
        while True:
            with self.time(name):
                item = next(items, None)
            if item is None:
                return
            yield item

    @property
    def elapsed(self) -> float:
        """Seconds that this and earlier runs took."""
        return time.perf_counter() - self._started

    def table(self) -> list[dict[str, float | int | str]]:
        """Return one row a stage, and the total."""
        rows: list[dict[str, float | int | str]] = [
            {
                "stage": stage.name,
                "seconds": round(stage.seconds, 3),
                "visits": stage.visits,
                "share": round(stage.seconds / self.elapsed, 4),
                "peak_rss_bytes": stage.peak_rss_bytes,
            }
            for stage in self.stages.values()
        ]
        rows.append(
            {
                "stage": TOTAL,
                "seconds": round(self.elapsed, 3),
                "visits": 1,
                "share": 1.0,
                "peak_rss_bytes": max(
                    [peak_rss_bytes(), *(s.peak_rss_bytes for s in self.stages.values())]
                ),
            }
        )
        return rows
