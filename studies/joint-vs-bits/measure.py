"""Where on the axis of bytes, or of times, do other kinds of compression enter the front?

``python studies/joint-vs-bits/measure.py MODEL --corpus TEXT`` searches a model twice a seed, over
the spaces ``joint`` and ``bits``, with the same text, budgets and number of trials. Of every
budget it measures the best plan of each space on held-out text, in pairs, and says what share of
the weights of the linears the plan makes sparse, factors, or drops with a sub-block. Budgets are
bits a parameter of the whole file or, with ``--cost decode_ms``, milliseconds of decoding a token,
from what bit-widths reach at most to what they reach at least. A seed deals the documents of the
text anew to its parts. It prints a table, and writes results and a plot.
"""

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.core.cost import (
    DECODE_MS,
    LIMITS,
    MEASURED,
    MIXED,
    MODELLED,
    WEIGHT_BYTES,
    title_of,
)
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE
from autocomp.data.deal import dealt
from autocomp.evaluate.intervals import paired
from autocomp.models import sketch_of
from autocomp.search.context import option_kind
from autocomp.search.experiment import (
    described,
    heldout_losses,
    results_path,
    shared_settings,
    write_results,
)
from autocomp.search.records import TrialRecord
from autocomp.search.run import Search
from autocomp.search.setup import Setup

INSIDE = 0.95
"""The largest budget of times as a share of what the largest plan takes, and the other way."""

RESULTS = Path(__file__).parent / "results"
SPACES = ("joint", "bits")
KINDS = {"sparse": "C1", "low-rank": "C2", "bypassed": "C3", "quantized": "C0", "dense": "C7"}


def shares(sketch: Sketch, plan: Plan) -> dict[str, float]:
    """Return the share of the weights of the linears by what a plan does to them."""
    found: Counter[str] = Counter()
    for site in sketch.sites:
        if site.kind == "linear":
            dropped = plan[sketch.owner[site.name]] != DENSE
            kind = "bypassed" if dropped else option_kind(plan[site.name])
            found[kind] += math.prod(site.shape)
    return {kind: count / found.total() for kind, count in found.items()}


def searched(
    asked: argparse.Namespace,
    seed: int,
    space: str,
    corpus: Path,
    budgets: Sequence[float],
    listener: Progress,
) -> list[dict[str, Any]]:
    """Search a space, and return the best plan within each budget, measured on held-out text."""
    settings = {
        **shared_settings(asked, seed, corpus),
        "data.rungs": [asked.tokens // 4, asked.tokens],
        "data.heldout_tokens": asked.tokens,
        "space.name": space,
        **axis(asked),
        f"budget.{LIMITS[asked.cost]}": budgets[0],
        "search.ladder": len(budgets),
        "search.lowest_share": budgets[-1] / budgets[0],
        "search.at_budget": 1 / len(budgets),
        "search.trials": asked.trials,
        "search.score": asked.score,
    }
    with tempfile.TemporaryDirectory() as folder:
        search = Search(load_config(None, settings), Path(folder), None, listener)
        search.run_trials(search.contexts())
        bench, records = search.bench, search.study.records()
        measured: dict[str, list[float]] = {}
        rows = []
        for budget in budgets:
            found = best(records, asked.cost, budget)
            if found is None:
                continue
            if found.digest not in measured:
                measured[found.digest] = heldout_losses(bench, found.plan)
            rows.append(
                {
                    "seed": seed,
                    "space": space,
                    "budget": budget,
                    "cost": found.cost_of(asked.cost),
                    "weight_bytes": found.weight_bytes,
                    "family": found.family,
                    "origin": found.origin,
                    "searched": found.loss,
                    "heldout": measured[found.digest],
                    "shares": shares(bench.sketch, found.plan),
                }
            )
        return rows


def axis(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of what is limited and minimised."""
    if asked.cost == WEIGHT_BYTES:
        return {}
    return {
        "objective.cost": asked.cost,
        "budget.device": asked.device,
        "budget.times": asked.times,
        "budget.context": asked.context,
    }


def budgets_of(asked: argparse.Namespace, parameters: int) -> list[float]:
    """Return the budgets, largest first, in bytes or milliseconds."""
    if asked.cost == WEIGHT_BYTES:
        bits = np.geomspace(asked.high, asked.low, asked.budgets)
        return [int(parameters * value / 8) for value in bits.tolist()]
    settings = {"model": asked.model, "space.name": "bits", **axis(asked)}
    low, high = Setup.of(load_config(None, settings)).reach(asked.cost)
    return np.geomspace(INSIDE * high, low / INSIDE, asked.budgets).tolist()


def best(records: Sequence[TrialRecord], cost: str, budget: float) -> TrialRecord | None:
    """Return the trial with the lowest loss within a budget."""
    some = [r for r in records if r.feasible and r.cost_of(cost) <= budget and r.loss is not None]
    return min(some, key=lambda record: record.loss or 0.0, default=None)


def place(cost: str, budget: float, parameters: int) -> float:
    """Return where a budget lies on the axis of a figure: bits a parameter, or milliseconds."""
    return 8 * budget / parameters if cost == WEIGHT_BYTES else budget


def summary(rows: Sequence[Mapping[str, Any]], cost: str, parameters: int) -> list[dict[str, Any]]:
    """Return a row a budget: joint over bits on held-out text, and what the joint plans are."""
    found = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        here = [row for row in rows if row["budget"] == budget]
        joint, bits = ([row for row in here if row["space"] == space] for space in SPACES)
        logs = [[math.log(np.mean(row["heldout"])) for row in mine] for mine in (joint, bits)]
        row: dict[str, Any] = {
            "budget": budget,
            "place": place(cost, budget, parameters),
            "kl_nats": [math.exp(float(np.mean(some))) if some else None for some in logs],
            "ratio": None,
            "interval": None,
            "shares": {
                kind: float(np.mean([one["shares"].get(kind, 0.0) for one in joint]))
                for kind in KINDS
            },
            "families": dict(Counter(one["family"] for one in joint)),
        }
        if len(joint) == len(bits):
            pair = paired(*logs)
            row["ratio"] = math.exp(pair.difference)
            row["interval"] = [math.exp(pair.low), math.exp(pair.high)] if len(bits) > 1 else None
        found.append(row)
    return found


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw both fronts, and what the joint plans are made of, by budget."""
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    cost, parameters = result["settings"]["cost"], result["parameters"]
    for space, colour in zip(SPACES, ("C3", "C0"), strict=True):
        mine = [row for row in result["rows"] if row["space"] == space]
        bits = [place(cost, row["budget"], parameters) for row in mine]
        kls = [np.mean(row["heldout"]) for row in mine]
        left.scatter(bits, kls, color=colour, s=14, label=space)
    left.set_yscale("log")
    left.set_xlabel(title(result["settings"]))
    left.set_ylabel("held-out KL, nats a token")
    left.legend(fontsize=8)
    rows = result["summary"]
    bits, bottom = [row["place"] for row in rows], np.zeros(len(rows))
    width = 0.8 * min(np.abs(np.diff(bits)), default=0.5)
    for kind, colour in KINDS.items():
        heights = np.array([row["shares"][kind] for row in rows])
        right.bar(bits, heights, width, bottom, color=colour, label=kind)
        bottom += heights
    right.set_xlabel(title(result["settings"]))
    right.set_ylabel("share of the linears' weights, joint")
    right.legend(fontsize=8)
    figure.savefig(path)


def title(settings: Mapping[str, Any]) -> str:
    """Return the title of the axis of budgets."""
    if settings["cost"] == WEIGHT_BYTES:
        return "bits a parameter"
    return f"{title_of(settings['cost'], settings['times'])}, {settings['device']}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Search every seed and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--high", type=float, default=6.0, help="largest budget, bits a parameter")
    parser.add_argument("--low", type=float, default=2.9, help="smallest budget")
    parser.add_argument("--cost", default=WEIGHT_BYTES, choices=(WEIGHT_BYTES, DECODE_MS))
    parser.add_argument("--device", default="h100", help="of the times")
    parser.add_argument("--times", default=MODELLED, choices=(MODELLED, MEASURED, MIXED))
    parser.add_argument("--context", type=int, default=2048, help="of the times, tokens")
    parser.add_argument("--budgets", type=int, default=8)
    parser.add_argument("--trials", type=int, default=80, help="a search")
    parser.add_argument("--score", default="kronecker")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16384, help="of search and of held-out text")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--out", type=Path, help="results/MODEL.json, or MODEL-decode_ms.json")
    asked = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    out, settings = results_path(asked, RESULTS), described(asked)
    if asked.out is None and asked.cost != WEIGHT_BYTES:
        out = out.with_stem(f"{out.stem}-{asked.cost}")
    parameters = sum(math.prod(site.shape) for site in sketch_of(asked.model).weights())
    budgets = budgets_of(asked, parameters)
    rows: list[dict[str, Any]] = []
    with progress(quiet=False) as listener:
        for seed in range(asked.seeds):
            with tempfile.TemporaryDirectory() as folder:
                corpus = dealt(asked.corpus, seed, Path(folder))
                for space in SPACES:
                    rows += searched(asked, seed, space, corpus, budgets, listener)
            found = {"summary": summary(rows, asked.cost, parameters), "rows": rows}
            result = write_results(out, settings, {"parameters": parameters, **found})
    draw(result, out.with_suffix(".png"))
    print(f"| {title(settings)} | joint | bits | ratio (95 %) | {' | '.join(KINDS)} |")
    print("|---" * (4 + len(KINDS)) + "|")
    for row in result["summary"]:
        cells = ["" if kl is None else f"{kl:.4f}" for kl in row["kl_nats"]]
        span = "" if row["interval"] is None else " ({:.3f} to {:.3f})".format(*row["interval"])
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}{span}"
        made = " | ".join(f"{row['shares'][kind]:.0%}" for kind in KINDS)
        print(f"| {row['place']:.4g} | {' | '.join(cells)} | {ratio} | {made} |")


if __name__ == "__main__":
    main()
