"""Do ten budgets cost less than twice one budget?

``python studies/ten-budgets/measure.py MODEL --corpus TEXT`` searches ten budgets one by one, each
with a study of its own (``search.ladder 1``), and all of them in one study (``search.ladder 10``).
A budget is reached by the one study when a plan within it has at most 1.01 times the searched KL
that its own study ends with. Both kinds count tokens alike: forward 1, backward 2; what scoring
and gradients read counts. A seed deals the documents of the text anew to calibration and search
text. It prints a table, and writes results and a plot. ``--lowest`` is the smallest budget as a
share of the largest, of the whole file.
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
from autocomp.config import load_config
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import weight_bytes
from autocomp.data.deal import dealt
from autocomp.models import sketch_of
from autocomp.search.experiment import described, results_path, shared_settings, write_results
from autocomp.search.oracle import BACKWARD, GRADIENT_TOKENS
from autocomp.search.run import Search

RESULTS = Path(__file__).parent / "results"
LEVELS = (2, 3, 4, 5, 6)
CLOSE = 1.01


def token(level: int, group: int) -> str:
    """Return the option of so many bits in groups of a size, 0 for whole rows."""
    return f"gptq-w{level}" + f"g{group}" * (group > 0)


def uniform_bytes(asked: argparse.Namespace, bits: float) -> int:
    """Return the bytes of a file with so many bits in every linear."""
    sketch, low = sketch_of(asked.model), math.floor(bits)

    def size(level: int) -> int:
        spec = LayerSpec.parse(token(level, asked.group))
        linear = {site.name: site.kind == "linear" for site in sketch.sites}
        return weight_bytes(sketch, Plan({n: spec if linear[n] else DENSE for n in linear}))

    below, above = size(low), size(min(low + 1, LEVELS[-1]))
    return int(below + (bits - low) * (above - below))


def searched(
    asked: argparse.Namespace,
    seed: int,
    corpus: Path,
    settings: Mapping[str, Any],
    listener: Progress,
) -> list[dict[str, Any]]:
    """Run one search without its finish; return a row a trial, with the tokens read by its end."""
    common = {
        **shared_settings(asked, seed, corpus),
        "data.rungs": [asked.tokens // 4, asked.tokens],
        "data.heldout_tokens": asked.window,
        "space.name": "bits",
        "space.linear": [token(level, asked.group) for level in LEVELS],
        "space.embedding": ["dense"],
        "space.bypass": False,
        "search.baselines": 2,
        "search.score": asked.score,
    }
    with tempfile.TemporaryDirectory() as folder:
        search = Search(load_config(None, common | settings), Path(folder), None, listener)
        contexts = search.contexts()
        begun = time.perf_counter()
        search.run_trials(contexts)
        seconds = time.perf_counter() - begun
        records = sorted(search.study.records(), key=lambda record: record.logical)
    rows, spent = [], (1 + BACKWARD) * asked.calibration
    seen: set[tuple[int, int]] = set()
    for record in records:
        for trial, part in record.details.get("read", ()):
            if (trial, part) not in seen:
                new = part not in {other for _, other in seen}  # the base reads a part once
                spent += GRADIENT_TOKENS * (1 + BACKWARD + new)
                seen.add((trial, part))
        spent += record.tokens
        complete = record.state == "COMPLETE"
        rows.append(
            {
                "origin": record.origin,
                "at": record.details.get("budget"),
                "bytes": record.weight_bytes,
                "loss": record.loss if complete else None,
                "tokens": spent,
            }
        )
    rows[-1]["seconds"] = seconds
    return rows


def best(rows: Sequence[Mapping[str, Any]], budget: int, tokens: float = math.inf) -> float:
    """Return the lowest loss of a plan within a budget, of the trials within some tokens."""
    losses = [
        row["loss"]
        for row in rows
        if row["loss"] is not None and row["bytes"] <= budget and row["tokens"] <= tokens
    ]
    return min(losses, default=math.inf)


def reached(rows: Sequence[Mapping[str, Any]], budget: int, loss: float) -> int | None:
    """Return the tokens after which a plan within a budget has at most a loss."""
    for row in rows:
        if row["loss"] is not None and row["bytes"] <= budget and row["loss"] <= loss:
            tokens: int = row["tokens"]
            return tokens
    return None


def measure(asked: argparse.Namespace, seed: int, listener: Progress) -> dict[str, Any]:
    """Return the searches of one seed."""
    top = uniform_bytes(asked, asked.bits)
    budgets = [int(value) for value in np.geomspace(top, asked.lowest * top, asked.budgets)]
    budgets[0] = top
    with tempfile.TemporaryDirectory() as folder:
        corpus = dealt(asked.corpus, seed, Path(folder))
        singles = [
            searched(
                asked,
                seed,
                corpus,
                {"budget.max_bytes": b, "search.ladder": 1, "search.trials": asked.trials},
                listener,
            )
            for b in budgets
        ]
        together = {
            "budget.max_bytes": top,
            "search.ladder": asked.budgets,
            "search.lowest_share": asked.lowest,
            "search.at_budget": 1 / asked.budgets,
            "search.trials": asked.trials_together,
        }
        ladder = searched(asked, seed, corpus, together, listener)
    rows = []
    for budget, single in zip(budgets, singles, strict=True):
        goal = best(single, budget)
        rows.append(
            {
                "budget_bytes": budget,
                "single_kl_nats": goal,
                "single_close_tokens": reached(single, budget, CLOSE * goal),
                "single_tokens": single[-1]["tokens"],
                "ladder_kl_nats": best(ladder, budget),
                "ladder_close_tokens": reached(ladder, budget, CLOSE * goal),
            }
        )
    one = float(np.mean([row["single_close_tokens"] for row in rows]))
    close = [row["ladder_close_tokens"] for row in rows]
    found = {
        "seed": seed,
        "one_budget_tokens": one,
        "one_budget_all_tokens": float(np.mean([row["single_tokens"] for row in rows])),
        "one_budget_seconds": float(np.mean([single[-1]["seconds"] for single in singles])),
        "ladder_tokens": None if None in close else max(close),
        "ladder_all_tokens": ladder[-1]["tokens"],
        "ladder_seconds": ladder[-1]["seconds"],
        "reached": sum(tokens is not None for tokens in close),
        "ratios": [row["ladder_kl_nats"] / row["single_kl_nats"] for row in rows],
        "ratios_at_twice": [
            best(ladder, budget, 2 * one) / row["single_kl_nats"]
            for budget, row in zip(budgets, rows, strict=True)
        ],
        "budgets": rows,
        "singles": singles,
        "ladder": ladder,
    }
    listener.log(
        f"seed {seed}: one budget {one:,.0f} tokens, ladder {found['ladder_tokens']}, "
        f"{found['reached']} reached, KL ratios {[round(r, 3) for r in found['ratios']]}"
    )
    return found


def curve(found: Mapping[str, Any]) -> tuple[list[float], list[int]]:
    """Return, by tokens over those of one budget, how many budgets the one study has reached."""
    close = [row["ladder_close_tokens"] for row in found["budgets"]]
    known = sorted(tokens for tokens in close if tokens is not None)
    return [t / found["one_budget_tokens"] for t in known], list(range(1, len(known) + 1))


def draw(seeds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw how many budgets are reached by tokens, a line a seed."""
    figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for found in seeds:
        axes.step(*curve(found), where="post", marker="o", label=f"seed {found['seed']}")
    axes.axvline(2, color="#9aa5b1", linewidth=1)
    axes.set_xlabel("tokens of the one study, over those of one budget")
    axes.set_ylabel("budgets within 1 % of their own study")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search every seed and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--bits", type=float, default=4.0, help="of the largest budget")
    parser.add_argument("--lowest", type=float, default=0.7)
    parser.add_argument("--budgets", type=int, default=10)
    parser.add_argument("--trials", type=int, default=24, help="of a study of one budget")
    parser.add_argument("--trials-together", type=int, default=72, help="of that of all")
    parser.add_argument("--score", default="kronecker")
    parser.add_argument("--group", type=int, default=64, help="of the quantizer, 0: whole rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16384, help="of the search text")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--out", type=Path, help="results/MODEL.json by default")
    asked = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    out, settings = results_path(asked, RESULTS), described(asked)
    seeds: list[dict[str, Any]] = []
    with progress(quiet=False) as listener:
        for seed in range(asked.seeds):
            seeds.append(measure(asked, seed, listener))
            write_results(out, settings, {"seeds": seeds})
    draw(seeds, out.with_suffix(".png"))
    print(
        "| seed | one budget, tokens | all, tokens | ratio | reached | KL at twice | at the end |"
    )
    print("|---|---|---|---|---|---|---|")
    for found in seeds:
        one, every = found["one_budget_tokens"], found["ladder_tokens"]
        cells = "never | " if every is None else f"{every:,} | {every / one:.2f}"
        kls = " | ".join(
            f"{np.exp(np.mean(np.log(found[name]))):.3f} (worst {max(found[name]):.3f})"
            for name in ("ratios_at_twice", "ratios")
        )
        reached = f"{found['reached']} of {len(found['ratios'])}"
        print(f"| {found['seed']} | {one:,.0f} | {cells} | {reached} | {kls} |")


if __name__ == "__main__":
    main()
