"""Compile every kernel ahead of time, without a GPU, and print what came of it.

One row a kernel and target: registers, shared memory, spills, 16-byte loads, and the bytes that
its programs ask for over the least that any implementation moves. Exits with 1 if a kernel spills
or does not compile: ``python kernels/bench/aot.py [--quick] [--csv FILE]``.
"""

import argparse
import csv
import os
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# Before the kernels, which then know that somebody wants them.
import triton
from _record import TARGETS, bench_files, compiled, launches

COLUMNS = (
    "operation",
    "case",
    "kernel",
    "target",
    "registers",
    "shared bytes",
    "spills",
    "16-byte loads",
    "moved / floor",
)


def main() -> int:
    """Compile, print, and return how it ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two shapes and no large batches")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    parser.add_argument("--only", help="one operation")
    parser.add_argument("--first", action="store_true", help="one case an operation")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}")
    print(" | ".join(COLUMNS), flush=True)
    rows, wrong = [], 0
    for name, bench in bench_files().items():
        if arguments.only not in (None, name):
            continue
        cases = bench.cases("meta", arguments.quick)
        for case in islice(cases, 1) if arguments.first else cases:
            for launch in launches(name, case):
                kernel = launch.kernel.__name__
                ratio = bench.traffic(launch) / case.floor_bytes
                for target in arguments.targets:
                    found = compiled(launch, target)
                    numbers = (found.registers, found.shared_bytes, found.spills)
                    row = (name, case.label, kernel, target, *numbers, found.wide_loads)
                    rows.append((*row, f"{ratio:.3f}"))
                    print(" | ".join(map(str, rows[-1])), flush=True)
                    wrong += found.spills > 0
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
