"""Wall times of several things that are compared: interleaved, warm, medians with their noise."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

REPEATS = 15
WARM_UP = 2

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one call took.

    Args:
        seconds: Median over the samples.
        noise: Half the interquartile range of the samples over their median.
        repeats: Samples.
    """

    seconds: float
    noise: float
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Timing":
        """Return the timing of some samples, seconds."""
        low, middle, high = np.percentile(np.asarray(samples), (25, 50, 75))
        return cls(float(middle), float((high - low) / 2 / middle), len(samples))


@torch.no_grad()
def interleaved(
    tasks: Sequence[Sequence[Call]], device: torch.device, *, repeats: int = REPEATS
) -> list[Timing]:
    """Time some tasks in turns, so that what slows the machine for a while slows all of them.

    A sample runs all calls of a task, which do the same on different memory, and counts their
    mean: with enough of them every call finds its operands outside the caches, as in a model.

    Args:
        tasks: Calls of each task.
        device: Where they run; waited for before the clock is read.
        repeats: Samples a task.
    """
    samples: list[list[float]] = [[] for _ in tasks]
    for turn in range(WARM_UP + repeats):
        for calls, found in zip(tasks, samples, strict=True):
            _wait(device)
            begun = time.perf_counter()
            for call in calls:
                call()
            _wait(device)
            if turn >= WARM_UP:
                found.append((time.perf_counter() - begun) / len(calls))
    return [Timing.of(found) for found in samples]


def _wait(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
