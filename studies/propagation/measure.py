"""What do statistics propagated through the compressed model change, with one and the same GPTQ?

``python studies/propagation/measure.py MODEL --corpus TEXT`` makes plans at some average bits, the
knapsack's and, where the bits are whole, the uniform one, and compresses each twice with the same
GPTQ from the same calibration text: every site from the inputs that the dense model gives it, as
a search does, and block by block from the inputs that the sites compressed before it leave, as a
finish does (without tuning). Both are measured on held-out text, in pairs. A seed deals the
documents of the text anew to calibration and held-out text and draws the labels. It prints a
table, and writes results and a plot.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import StudyConfig, load_config
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.spec import LayerSpec
from autocomp.data.deal import dealt
from autocomp.evaluate.intervals import paired
from autocomp.formats.base import Operands
from autocomp.layers.apply import Fetch
from autocomp.search.clock import Clock
from autocomp.search.context import SearchContext
from autocomp.search.experiment import (
    described,
    heldout_losses,
    results_path,
    shared_settings,
    write_results,
)
from autocomp.search.finish import recompress
from autocomp.search.knapsack import solve
from autocomp.search.scoring import score_options
from autocomp.search.setup import Setup
from autocomp.search.stored import search_context
from autocomp.search.workbench import Workbench

RESULTS = Path(__file__).parent / "results"
LEVELS = (2, 3, 4, 5, 6)


def study_config(asked: argparse.Namespace, seed: int, corpus: Path) -> StudyConfig:
    """Return the settings of one seed: GPTQ levels of the decoder linears, no tuning."""
    return load_config(
        None,
        {
            **shared_settings(asked, seed, corpus),
            "data.rungs": [asked.tokens],
            "data.heldout_tokens": asked.tokens,
            "space.name": "bits",
            "space.linear": [f"gptq-w{level}g{asked.group}" for level in LEVELS],
            "space.embedding": ["dense"],
            "space.bypass": False,
            "search.finish": "none",
        },
    )


def uniform(context: SearchContext, bits: int) -> Plan:
    """Return the plan with so many bits in every linear."""
    levels = {
        name: [spec.quantizer.bits if spec.quantizer else 0 for spec in options]
        for name, options in context.space.lists.items()
    }
    return context.space.decode(
        {name: found.index(bits) if bits in found else 0 for name, found in levels.items()}
    )


def plans(context: SearchContext, bits: float) -> dict[str, Plan]:
    """Return the knapsack's plan at so many bits a weight, and the uniform one if there is one."""
    low, problem = math.floor(bits), context.problem
    costs = [
        problem.solution(*context.decisions(context.space.encode(uniform(context, level)))).cost
        for level in (low, min(low + 1, LEVELS[-1]))
    ]
    budget = int(costs[0] + (bits - low) * (costs[1] - costs[0]))
    found = {"knapsack": context.space.decode(context.params(solve(problem, budget)))}
    if bits == low:
        found["uniform"] = uniform(context, low)
    return found


def heldout(work: Workbench, plan: Plan, fetch: Fetch) -> list[float]:
    """Return the KL of every held-out window, nats a token; the live model is left restored."""
    found = heldout_losses(work, plan, fetch)
    work.candidate.restore()
    return found


def propagated(work: Workbench, plan: Plan, listener: Progress) -> Fetch:
    """Compress a plan block by block, and return what its sites then compute with."""
    weights = recompress(work, plan, listener)

    def fetch(site: str, spec: LayerSpec) -> Operands:
        weight, prepare = weights[site].to(work.device).operands()
        return Operands(weight.to(work.dtype), prepare)

    return fetch


def measure(asked: argparse.Namespace, seed: int, listener: Progress) -> list[dict[str, Any]]:
    """Return a row a plan of one seed."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = study_config(asked, seed, dealt(asked.corpus, seed, Path(folder)))
        setup, work = Setup.of(config), Workbench(config, listener)
        table = score_options(work, setup.site_lists, listener, Clock())
        context = search_context(setup, table)
        for bits in asked.bits:
            for name, plan in plans(context, bits).items():
                dense = heldout(work, plan, work.operands)
                begun = time.perf_counter()
                fetch = propagated(work, plan, listener)
                seconds = time.perf_counter() - begun
                row = {"seed": seed, "bits": bits, "plan": name, "dense": dense}
                row |= {"propagated": heldout(work, plan, fetch), "seconds": seconds}
                rows.append(row)
                one, other = (float(np.mean(row[kind])) for kind in ("dense", "propagated"))
                listener.log(f"seed {seed}, {bits} bits, {name}: KL {one:.4f} -> {other:.4f}")
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a budget and plan: propagated over dense, geometric mean over seeds.

    The interval is over seeds; that of each seed's difference is over windows, in pairs.
    """
    found = []
    for bits, plan in dict.fromkeys((row["bits"], row["plan"]) for row in rows):
        mine = [row for row in rows if (row["bits"], row["plan"]) == (bits, plan)]
        logs = {
            kind: [math.log(np.mean(row[kind])) for row in mine]
            for kind in ("dense", "propagated")
        }
        pair = paired(logs["propagated"], logs["dense"])
        differences = [paired(row["propagated"], row["dense"]) for row in mine]
        found.append(
            {
                "bits": bits,
                "plan": plan,
                "dense_kl_nats": math.exp(float(np.mean(logs["dense"]))),
                "propagated_kl_nats": math.exp(float(np.mean(logs["propagated"]))),
                "ratio": math.exp(pair.difference),
                "interval": [math.exp(pair.low), math.exp(pair.high)] if len(mine) > 1 else None,
                "difference_low_high": [[d.difference, d.low, d.high] for d in differences],
            }
        )
    return found


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw propagated over dense by budget, a point a seed."""
    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for plan, colour, shift in (("knapsack", "C0", -0.015), ("uniform", "C1", 0.015)):
        mine = [row for row in rows if row["plan"] == plan]
        ratios = [np.mean(row["propagated"]) / np.mean(row["dense"]) for row in mine]
        axes.scatter([row["bits"] + shift for row in mine], ratios, color=colour, label=plan)
    axes.axhline(1, color="#9aa5b1", linewidth=1)
    axes.set_xlabel("average bits of the linears")
    axes.set_ylabel("held-out KL, propagated over dense statistics")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every seed and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--bits", type=float, nargs="+", default=[3.0, 3.5, 4.0])
    parser.add_argument("--group", type=int, default=64, help="group size of the quantizer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16384, help="held-out")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--out", type=Path, help="results/MODEL.json by default")
    asked = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    out, settings = results_path(asked, RESULTS), described(asked)
    rows: list[dict[str, Any]] = []
    with progress(quiet=False) as listener:
        for seed in range(asked.seeds):
            rows += measure(asked, seed, listener)
            result = write_results(out, settings, {"summary": summary(rows), "rows": rows})
    draw(rows, out.with_suffix(".png"))
    print("| bits | plan | dense | propagated | ratio (95 % over seeds) |\n|---|---|---|---|---|")
    for row in result["summary"]:
        span = "" if row["interval"] is None else "{:.3f} to {:.3f}".format(*row["interval"])
        print(
            f"| {row['bits']} | {row['plan']} | {row['dense_kl_nats']:.4f} | "
            f"{row['propagated_kl_nats']:.4f} | {row['ratio']:.3f} ({span}) |"
        )


if __name__ == "__main__":
    main()
