"""Measure every Triton kernel on this machine's GPU: ``make bench-gpu``.

Needs torch, Triton and this working tree. Weights are random, in the shapes of real models. A row
a case: the error against the reference, the median time over copies of the arguments that together
exceed the cache, the share of the measured copy bandwidth that the least bytes make of it, and the
time of a dense bf16 product. What the installed Triton cannot compile is said and skipped, and so
is what the minutes do not reach.
"""

import argparse
import csv
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
import triton.testing
from _case import Case
from _model import tokens_per_second
from _record import bench_files
from torch import Tensor

from autocomp.core.registry import KERNELS
from autocomp.kernels._triton import NAME

CACHE_BYTES = 256 * 2**20
"""Copies of the arguments of a case exceed this together, and so any GPU's cache."""

MOST_COPIES = 64
LARGEST_ERROR = 2e-3
"""Relative error of the outputs in half precision, by the norm."""

COLUMNS = (
    "operation",
    "case",
    "error",
    "microseconds",
    "floor bytes",
    "floor / copy bandwidth",
    "dense bf16 microseconds",
    "times as fast",
    "card",
    "clocks",
    "versions",
)


def card() -> tuple[str, str, str]:
    """Return the card, its clocks and the versions, each in words."""
    query = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,driver_version"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        clocks = said.stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError):
        clocks = "unknown"
    versions = f"torch {torch.__version__}, triton {triton.__version__}, {torch.version.cuda}"
    return torch.cuda.get_device_name(), clocks, versions


def median_s(calls: list[Callable[[], Any]]) -> float:
    """Return the median time of calls that are made in turn, seconds."""
    turn = itertools.cycle(calls)
    milliseconds = triton.testing.do_bench(
        lambda: next(turn)(), warmup=10, rep=60, return_mode="median"
    )
    return float(milliseconds) * 1e-3


def copy_bandwidth() -> float:
    """Return what a copy of 1 GiB reads and writes a second, bytes."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_s([lambda: target.copy_(source)])


def dense_s(case: Case) -> float | None:
    """Return the time of a dense bf16 product of the same shape, seconds."""
    if case.dense is None:
        return None
    count = copies(2 * case.dense[0] * case.dense[1])
    inputs = case.arguments[0].to(torch.bfloat16)
    weights = [torch.randn(case.dense, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    return median_s([lambda w=w: torch.nn.functional.linear(inputs, w) for w in weights])


def copies(size: int) -> int:
    """Return how many copies of so many bytes exceed the cache."""
    return max(2, min(MOST_COPIES, CACHE_BYTES // max(1, size) + 1))


def _copy(argument: Any) -> Any:
    """Return a copy of an argument: of a tensor, or of those of a named tuple."""
    if isinstance(argument, Tensor):
        return argument.clone()
    if hasattr(argument, "_fields"):
        return type(argument)(*map(_copy, argument))
    return argument


def measure(name: str, case: Case) -> tuple[float, float]:
    """Return the relative error against the reference and the median time in seconds."""
    found = KERNELS[name]
    with found.pinned(NAME):
        result = found(*case.arguments)
        expected = found.reference(*case.arguments)
        if isinstance(result, tuple):
            result, expected = result[0], expected[0]
        difference = (result.double() - expected.double()).norm()
        error = float(difference / expected.double().norm().clamp_min(1e-30))
        several = [
            tuple(_copy(argument) for argument in case.arguments)
            for _ in range(copies(case.floor_bytes))
        ]
        return error, median_s([lambda a=a: found(*a) for a in several])


def main() -> int:
    """Measure, print, write, and return how it ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=7.0, help="stop starting cases then")
    parser.add_argument("--quick", action="store_true", help="two shapes and no large batches")
    parser.add_argument("--only", help="one operation")
    parser.add_argument("--csv", type=Path, default=Path("kernels/bench/results.csv"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench-gpu: requires a CUDA device; torch sees none.", file=sys.stderr)
        return 2
    stop = time.monotonic() + 60 * arguments.minutes
    about = card()
    print("\n".join(about))
    bandwidth = copy_bandwidth()
    print(f"copy: {bandwidth / 1e12:.3f} TB/s", flush=True)
    rows, wrong, left = [], 0, 0
    for name, bench in bench_files().items():
        if arguments.only not in (None, name):
            continue
        for case in bench.cases("cuda", arguments.quick):
            if time.monotonic() > stop:
                left += 1
                continue
            try:
                error, seconds = measure(name, case)
            except (triton.errors.TritonError, triton.runtime.errors.OutOfResources) as failed:
                reason = next(iter(str(failed).splitlines()), type(failed).__name__)
                print(f"{name} | {case.label} | skipped: {reason}", flush=True)
                continue
            dense = dense_s(case)
            share = case.floor_bytes / seconds / bandwidth
            faster = "" if dense is None else f"{dense / seconds:.2f}"
            dense_us = "" if dense is None else f"{dense * 1e6:.2f}"
            row = (name, case.label, f"{error:.1e}", f"{seconds * 1e6:.2f}", case.floor_bytes)
            rows.append((*row, f"{share:.3f}", dense_us, faster, *about))
            print(" | ".join(map(str, rows[-1][:8])), flush=True)
            if not error <= LARGEST_ERROR:
                wrong += 1
                print(f"WRONG: {name}, {case.label}: relative error {error:.1e}", flush=True)
    if left:
        print(f"{left} cases left out: {arguments.minutes} minutes are over.")
    if arguments.only in (None, "weight_only_matmul"):
        for label, speed in tokens_per_second().items():
            rows.append(("decode", label, "", f"{1e6 / speed:.2f}", "", "", "", "", *about))
            print(f"decode | {label}: {speed:.1f} tokens/s", flush=True)
    with arguments.csv.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    print(f"wrote {arguments.csv}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
