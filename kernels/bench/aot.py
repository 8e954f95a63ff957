"""Compile every kernel ahead of time, without a GPU, and print what came of it.

One row a kernel and target: registers, shared memory, spills, 16-byte loads, and the bytes that
its programs ask for over the least that any implementation moves. At one large shape every variant
of an operation is compiled for one row of inputs in fp16, and the first variant for more rows and
in bf16 and fp32; at a small shape for one row. Exits with 1 if a kernel spills or does not
compile: ``python kernels/bench/aot.py [--quick] [--csv FILE] [--markdown FILE]``.
"""

import argparse
import csv
import multiprocessing
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parent))
os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# Before the kernels, which then know that somebody wants them.
import torch
import triton
from _case import FEW, Case
from _record import TARGETS, bench_files, compiled, launches

COLUMNS = (
    "operation",
    "case",
    "inputs",
    "kernel",
    "target",
    "registers",
    "shared bytes",
    "spills",
    "16-byte loads",
    "moved / floor",
)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
MAIN = FEW[-1].name

Row = tuple[str | int, ...]


def chosen(bench: ModuleType, quick: bool) -> Iterator[tuple[str, Case]]:
    """Iterate over the cases of a bench file and the dtypes of their inputs."""
    few = list(bench.cases("meta", True))
    yield from (("fp16", case) for case in (few if quick else few[:1]))
    for name, dtype in () if quick else DTYPES.items():
        large = [case for case in bench.cases("meta", False, dtype) if case.label.startswith(MAIN)]
        seen = set()
        for case in large or bench.cases("meta", True, dtype):
            found = re.search(r"\d+ rows", case.label)
            rows = found.group() if found else ""
            every = name == "fp16" and rows in ("", "1 rows")
            known = name == "fp16" and case.label == few[0].label
            if (every or rows not in seen) and not known:
                yield name, case
            seen.add(rows)


def table(quick: bool, first: bool, targets: Iterable[str], name: str) -> list[Row]:
    """Return the rows of one operation."""
    bench, rows = bench_files()[name], []
    for inputs, case in islice(chosen(bench, quick), 1 if first else None):
        for launch in launches(name, case):
            kernel = launch.kernel.__name__
            ratio = bench.traffic(launch) / case.floor_bytes
            for target in targets:
                found = compiled(launch, target)
                numbers = (found.registers, found.shared_bytes, found.spills, found.wide_loads)
                rows.append((name, case.label, inputs, kernel, target, *numbers, f"{ratio:.3f}"))
    return rows


def summary(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a short table: one row of inputs, fp16, a line a case."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for name, case, inputs, _, target, registers, shared, spills, wide, ratio in rows:
        if inputs == "fp16" and not re.search(r"\b(?!1 rows)\d+ rows", str(case)):
            line = cells.setdefault((str(name), str(case), str(ratio)), {})
            line[str(target)] = f"{registers} / {int(shared) / 1024:g} / {spills} / {wide}"
    yield "One row of inputs in fp16; a cell is registers / shared KiB / spills / 16-byte loads."
    yield f"Written by `make kernels-aot` with Triton {triton.__version__}; all cases: `aot.csv`."
    yield ""
    yield f"| operation | case | {' | '.join(TARGETS)} | moved / floor |"
    yield "|---|---|" + "---|" * (len(TARGETS) + 1)
    for (name, case, ratio), line in cells.items():
        found = " | ".join(line.get(target, "") for target in TARGETS)
        yield f"| `{name}` | {case} | {found} | {ratio} |"


def main() -> int:
    """Compile, print, and return how it ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two shapes, fp16, small batches")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    parser.add_argument("--markdown", type=Path, help="also write a short table here")
    parser.add_argument("--only", nargs="*", help="operations; all by default")
    parser.add_argument("--first", action="store_true", help="one case an operation")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}")
    print(" | ".join(COLUMNS), flush=True)
    names = arguments.only or list(bench_files())
    of = partial(table, arguments.quick, arguments.first, arguments.targets)
    rows: list[Row] = []
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for found in map(of, names) if arguments.jobs == 1 else pool.map(of, names):
            rows += found
            print("\n".join(" | ".join(map(str, row)) for row in found), flush=True)
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*summary(rows), ""]), encoding="utf-8")
    return 1 if any(row[COLUMNS.index("spills")] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
