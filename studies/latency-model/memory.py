"""Predicted peak memory against the resident memory of a fresh process.

``python studies/latency-model/memory.py --model smollm2-135m`` writes a native folder a row, with
random weights in the row's format, and loads it in a process of its own, which reads a context and
decodes some tokens, twice over: the first life warms the libraries up and is forgotten, the second
one tells how far the resident memory rises. The prediction is ``weights + keys and values +
activations + workspace``. glibc keeps what is freed in its heap, up to some tens of megabytes,
unless it is told at start when to give it back: the children are, as a server should be.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autocomp.core.plan import Plan
from autocomp.core.sketch import DTYPE_BYTES
from autocomp.core.spec import LayerSpec
from autocomp.cost import (
    activation_bytes,
    native_infos,
    peak_memory_bytes,
    plan_cache_bytes,
    workspace_bytes,
)
from autocomp.cost.models import Workload
from autocomp.evaluate.forms import Forms
from autocomp.evaluate.latency import ModelBench, step
from autocomp.evaluate.record import hardware, versions
from autocomp.formats.base import torch_dtype
from autocomp.layers.native import load as load_native
from autocomp.models import load

ROWS = ("dense", "rtn-w8-sym", "rtn-w4g64-sym", "rtn-w2g64")
DECODED = 4
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_TOP_PAD_": "0"}
"""What glibc reads when a process starts."""


def resident_bytes(field: str) -> int:
    """Return a field of this process' memory: ``VmRSS`` now, ``VmHWM`` at most, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    """Let ``VmHWM`` start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def live(folder: str, work: Workload, dtype: torch.dtype) -> dict[str, int]:
    """Load and run a native folder; return by how many bytes the memory rose."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    before = resident_bytes("VmRSS")
    model = load_native(folder, dtype=dtype)
    loaded, loading = resident_bytes("VmRSS"), resident_bytes("VmHWM")
    reset_peak()
    with torch.no_grad():
        step(model, work, "prefill")()
        decode = step(model, work, "decode", repeats=DECODED)
        for _ in range(DECODED):
            decode()
    found = {"loaded": loaded, "loading": loading, "peak": resident_bytes("VmHWM")}
    return {name: size - before for name, size in found.items()}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Return one row a format."""
    loaded = load(asked.model)
    sketch, rows = loaded.sketch, []
    size = DTYPE_BYTES[sketch.dtype]
    bench = ModelBench(loaded, torch.device("cpu"), torch_dtype(sketch.dtype), Forms(sketch.dtype))
    work = {"context": asked.context, "batch": asked.batch}
    for token in asked.rows.split(","):
        spec = LayerSpec.parse(token)
        plan = Plan({site.name: spec for site in sketch.weights()})
        with bench.folder(plan) as folder:
            command = [sys.executable, __file__, "--child", str(folder)]
            command += ["--context", str(asked.context), "--batch", str(asked.batch)]
            command += ["--dtype", asked.dtype]
            answer = subprocess.run(
                command, capture_output=True, text=True, check=True, env=os.environ | ALLOCATOR
            )
        risen = json.loads(answer.stdout.splitlines()[-1])
        predicted = peak_memory_bytes(sketch, plan, **work)
        rows.append(
            {
                "token": token,
                "predicted_bytes": predicted,
                "weights_bytes": sum(i.nbytes for i in native_infos(sketch, plan).values()),
                "cache_bytes": plan_cache_bytes(sketch, plan, **work),
                "activations_bytes": activation_bytes(sketch, **work),
                "workspace_bytes": workspace_bytes(sketch),
                "loading_peak_rss_bytes": risen["loading"],
                "loaded_rss_bytes": risen["loaded"],
                "peak_rss_bytes": risen["peak"],
                "error": predicted / risen["peak"] - 1,
            }
        )
    return {
        "settings": {
            "model": asked.model,
            "dtype": asked.dtype,
            "predicted_bytes_a_number": size,
            "allocator": ALLOCATOR,
            **work,
        },
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", default=",".join(ROWS), help="tokens, with commas")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", help="of inputs; predictions take 2 bytes")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    out = Path(__file__).parent / "results" / "memory.json"
    parser.add_argument("--out", type=Path, default=out)
    asked = parser.parse_args(arguments)
    if asked.child is not None:
        work = Workload(asked.context, asked.batch, "this")
        for _ in range(2):
            found = live(asked.child, work, torch_dtype(asked.dtype))
        print(json.dumps(found))
        return
    found = measure(asked)
    print("| linears and tables | predicted MB | measured MB | error |")
    print("|---|---:|---:|---:|")
    for row in found["rows"]:
        predicted, peak = row["predicted_bytes"] / 1e6, row["peak_rss_bytes"] / 1e6
        print(f"| {row['token']} | {predicted:.1f} | {peak:.1f} | {row['error']:+.1%} |")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
