"""Which score should allocate bits, how well does it order plans of one size, what does it cost?

``python studies/score-ablation/measure.py MODEL --corpus TEXT`` scores, once a seed, every option
of every decoder linear with every score, from one calibration text and one set of compressed
weights. At every budget it measures the knapsack's plan of each score on held-out text, with the
uniform plan and random allocations of the same bytes, and how the scores order plans of that
budget: *near* ones, which are solutions of a score with its groups multiplied by random factors,
the same number from every score, and *random* ones. A seed deals the documents of the text anew
to calibration and held-out text, and draws the labels and plans. It prints tables, and writes
results and a plot.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau, spearmanr

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import StudyConfig, load_config
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.registry import SCORES
from autocomp.core.seeds import SeedTree
from autocomp.data.deal import dealt
from autocomp.evaluate.intervals import paired
from autocomp.search.clock import Clock
from autocomp.search.context import SearchContext
from autocomp.search.experiment import (
    described,
    heldout_losses,
    results_path,
    shared_settings,
    write_results,
)
from autocomp.search.knapsack import solve
from autocomp.search.objectives import objective_of
from autocomp.search.oracle import BACKWARD
from autocomp.search.problem import Floats, Problem
from autocomp.search.scoring import score_options
from autocomp.search.setup import Setup
from autocomp.search.stored import search_context
from autocomp.search.workbench import Workbench

RESULTS = Path(__file__).parent / "results"
LEVELS = (2, 3, 4, 5, 6)
REFERENCE = "kronecker"
STAGES = ("calibrate", "score", "measure options")
NEAR_SPREAD, RANDOM_SPREAD = 1.0, 1.5
"""Standard deviation of the log factors of groups."""


def study_config(asked: argparse.Namespace, seed: int, corpus: Path) -> StudyConfig:
    """Return the settings of one seed: GPTQ levels of the decoder linears."""
    return load_config(
        None,
        {
            **shared_settings(asked, seed, corpus),
            "data.rungs": [asked.rung, asked.tokens],
            "data.heldout_tokens": asked.tokens,
            "space.name": "bits",
            "space.linear": [f"gptq-w{level}g{asked.group}" for level in LEVELS],
            "space.embedding": ["dense"],
            "space.bypass": False,
        },
    )


class Bench:
    """One seed: the model and the scores of all options; every plan is measured once.

    Args:
        config: Settings.
        listener: Told of progress.
    """

    def __init__(self, config: StudyConfig, listener: Progress) -> None:
        self.setup, self.work = Setup.of(config), Workbench(config, listener)
        objective = objective_of(self.work)
        self.contexts: dict[str, SearchContext] = {}
        self.effort: dict[str, dict[str, float]] = {}
        for name in SCORES:
            clock = Clock()
            table = score_options(
                self.work, self.setup.site_lists, listener, clock, name, objective
            )
            self.contexts[name] = search_context(self.setup, table)
            read = (1 + BACKWARD) * config.data.calibration_tokens + table.tokens
            seconds = sum(clock.seconds(stage) for stage in STAGES)
            self.effort[name] = {"tokens": read, "seconds": seconds}
        self._losses: dict[str, tuple[float, ...]] = {}

    @property
    def context(self) -> SearchContext:
        """The context of the reference score; all have its space and costs."""
        return self.contexts[REFERENCE]

    def uniform(self, bits: int) -> Plan:
        """Return the plan with so many bits in every linear."""
        lists = self.context.space.lists
        levels = {
            name: [spec.quantizer.bits if spec.quantizer else 0 for spec in options]
            for name, options in lists.items()
        }
        return self.context.space.decode(
            {name: found.index(bits) if bits in found else 0 for name, found in levels.items()}
        )

    def budget(self, bits: float) -> int:
        """Return the bytes of so many bits a weight, between the two uniform plans around it."""
        low = math.floor(bits)
        sizes = [self.cost(self.uniform(level)) for level in (low, min(low + 1, LEVELS[-1]))]
        return int(sizes[0] + (bits - low) * (sizes[1] - sizes[0]))

    def cost(self, plan: Plan) -> int:
        """Return what the knapsack counts of a plan, bytes."""
        choice, bypassed = self.context.decisions(self.context.space.encode(plan))
        return self.context.problem.solution(choice, bypassed).cost

    def predicted(self, score: str, plan: Plan) -> float:
        """Return what a score predicts of a plan."""
        context = self.contexts[score]
        choice, bypassed = context.decisions(context.space.encode(plan))
        return context.problem.solution(choice, bypassed).score

    def solved(self, problem: Problem, budget: int) -> Plan:
        """Return the knapsack's plan."""
        return self.context.space.decode(self.context.params(solve(problem, budget)))

    def losses(self, plan: Plan) -> tuple[float, ...]:
        """Return the KL of every held-out window, nats a token."""
        if plan.digest not in self._losses:
            self._losses[plan.digest] = tuple(heldout_losses(self.work, plan))
        return self._losses[plan.digest]


def perturbed(problem: Problem, score: Floats, spread: float, rng: np.random.Generator) -> Problem:
    """Return a problem with the scores of every group multiplied by a log-normal factor."""
    factors = rng.lognormal(0, spread, (len(score), 1))
    return problem.with_scores(score * factors, problem.bypass_score)


def by_size(problem: Problem, context: SearchContext) -> Floats:
    """Return scores that know nothing of the model: weights of a group times 4^−bits."""
    found = np.full(problem.score.shape, np.inf)
    for row, group in enumerate(problem.groups):
        size = math.prod(context.space.sketch[group.name].shape)
        for option, spec in enumerate(context.space.lists[group.name]):
            bits = spec.quantizer.bits if spec.quantizer else math.inf
            found[row, option] = size * 4.0**-bits
    return found


def measure(asked: argparse.Namespace, seed: int, listener: Progress) -> dict[str, Any]:
    """Return what one seed gives."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = dealt(asked.corpus, seed, Path(folder))
        bench = Bench(study_config(asked, seed, corpus), listener)
        rng = SeedTree(seed).child("plans").numpy()
        rows, orders = [], []
        for bits in asked.bits:
            budget = bench.budget(bits)
            problems = {name: context.problem for name, context in bench.contexts.items()}
            plans = {name: bench.solved(problem, budget) for name, problem in problems.items()}
            pools: dict[str, list[Plan]] = {"near": [], "random": []}
            for draw in range(asked.plans):
                near = list(problems.values())[draw % len(problems)]
                pools["near"].append(
                    bench.solved(perturbed(near, near.score, NEAR_SPREAD, rng), budget)
                )
                size = by_size(near, bench.context)
                pools["random"].append(
                    bench.solved(perturbed(near, size, RANDOM_SPREAD, rng), budget)
                )
            if bits == int(bits):
                plans["uniform"] = bench.uniform(int(bits))
            for name, plan in plans.items():
                losses = list(bench.losses(plan))
                size = bench.cost(plan)
                rows.append({"bits": bits, "score": name, "bytes": size, "heldout": losses})
                listener.log(f"seed {seed}, {bits} bits, {name}: KL {np.mean(losses):.4f}")
            random = np.mean([bench.losses(plan) for plan in pools["random"]], axis=0)
            rows.append({"bits": bits, "score": "random", "heldout": random.tolist()})
            for pool, members in pools.items():
                distinct = {plan.digest: plan for plan in members}.values()
                real = [float(np.mean(bench.losses(plan))) for plan in distinct]
                for name in problems:
                    predicted = [bench.predicted(name, plan) for plan in distinct]
                    orders.append(
                        {
                            "bits": bits,
                            "score": name,
                            "pool": pool,
                            "plans": len(real),
                            "spearman": float(spearmanr(predicted, real).statistic),
                            "kendall": float(kendalltau(predicted, real).statistic),
                        }
                    )
        return {"seed": seed, "effort": bench.effort, "rows": rows, "orders": orders}


def allocations(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a score and budget, and one over all budgets: held-out KL over the reference's.

    Ratios are geometric means over seeds; the interval over all budgets is one over seeds and
    budgets, in pairs.
    """
    kls = {
        (row["score"], row["bits"], one["seed"]): float(np.mean(row["heldout"]))
        for one in found
        for row in one["rows"]
    }
    summary = []
    for score in dict.fromkeys(key[0] for key in kls):
        mine = [key[1:] for key in kls if key[0] == score]
        for bits in (*dict.fromkeys(b for b, _ in mine), None):
            some = [place for place in mine if bits in (None, place[0])]
            logs = [math.log(kls[(score, *place)]) for place in some]
            others = [math.log(kls[(REFERENCE, *place)]) for place in some]
            pair = paired(logs, others)
            interval = [math.exp(min(value, 700.0)) for value in (pair.low, pair.high)]
            summary.append(
                {
                    "score": score,
                    "bits": bits,
                    "kl_nats": math.exp(float(np.mean(logs))),
                    "ratio": math.exp(pair.difference),
                    "interval": interval if len(some) > 1 else None,
                    "better": sum(a < b for a, b in zip(logs, others, strict=True)),
                    "of": len(some),
                }
            )
    return summary


def correlations(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a score and pool: mean, least and largest rank correlation."""
    orders = [order for one in found for order in one["orders"]]
    summary = []
    for score, pool in dict.fromkeys((order["score"], order["pool"]) for order in orders):
        mine = [order for order in orders if (order["score"], order["pool"]) == (score, pool)]
        row: dict[str, Any] = {"score": score, "pool": pool}
        for name in ("spearman", "kendall"):
            values = [order[name] for order in mine]
            row[name] = {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}
        summary.append(row)
    return summary


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw KL over the reference's by budget, and rank correlations, a point a budget and seed."""
    figure = Figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in result["allocations"] if row["bits"] is not None]
    for index, score in enumerate(dict.fromkeys(row["score"] for row in rows)):
        mine = [row for row in rows if row["score"] == score]
        style = "o-" if score in SCORES else "x--"
        bits = [row["bits"] for row in mine]
        left.plot(bits, [row["ratio"] for row in mine], style, color=f"C{index % 10}", label=score)
    left.set_yscale("log")
    left.set_xlabel("average bits of the linears")
    left.set_ylabel(f"held-out KL over that of {REFERENCE}")
    left.legend(fontsize=7)
    names = list(dict.fromkeys(row["score"] for row in result["correlations"]))
    for pool, colour, shift in (("near", "C0", -0.15), ("random", "C1", 0.15)):
        orders = [o for one in result["seeds"] for o in one["orders"] if o["pool"] == pool]
        places = [names.index(order["score"]) + shift for order in orders]
        right.scatter(places, [o["spearman"] for o in orders], s=12, color=colour, label=pool)
    right.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    right.set_ylabel("Spearman's ρ at one budget")
    right.axhline(0, color="#9aa5b1", linewidth=1)
    right.legend(fontsize=8)
    figure.savefig(path)


def print_tables(result: Mapping[str, Any]) -> None:
    """Print what the README states."""
    rows, budgets = result["allocations"], result["settings"]["bits"]
    print("| score | " + " | ".join(f"{b} bits" for b in budgets) + " | all (95 %) | better |")
    print("|---" * (len(budgets) + 3) + "|")
    for score in dict.fromkeys(row["score"] for row in rows):
        mine = {row["bits"]: row for row in rows if row["score"] == score}
        cells = [f"{mine[b]['kl_nats']:.4f}" if b in mine else "" for b in budgets]
        whole = mine[None]
        span = "" if whole["interval"] is None else "{:.3f} to {:.3f}".format(*whole["interval"])
        print(
            f"| `{score}` | {' | '.join(cells)} | {whole['ratio']:.3f} ({span}) | "
            f"{whole['better']} of {whole['of']} |"
        )
    print("\n| score | near: ρ, τ | random: ρ, τ | tokens | seconds |\n|---|---|---|---|---|")
    ranks = {(row["score"], row["pool"]): row for row in result["correlations"]}
    for score in dict.fromkeys(row["score"] for row in result["correlations"]):
        cells = [
            f"{ranks[score, pool]['spearman']['mean']:.2f}, "
            f"{ranks[score, pool]['kendall']['mean']:.2f}"
            for pool in ("near", "random")
        ]
        efforts = [one["effort"][score] for one in result["seeds"]]
        tokens, seconds = (np.mean([e[key] for e in efforts]) for key in ("tokens", "seconds"))
        print(f"| `{score}` | {' | '.join(cells)} | {tokens:,.0f} | {seconds:.1f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the seeds that the results do not hold yet, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--bits", type=float, nargs="+", default=[2.5, 3.0, 3.5, 4.0])
    parser.add_argument("--group", type=int, default=64, help="group size of the quantizer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plans", type=int, default=27, help="of each pool and budget")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192, help="held-out")
    parser.add_argument("--rung", type=int, default=1024, help="tokens of the measured score")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--out", type=Path, help="results/MODEL.json by default")
    asked = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    out, settings = results_path(asked, RESULTS), described(asked, "seeds")
    found: list[dict[str, Any]] = []
    if out.exists() and (kept := json.loads(out.read_text(encoding="utf-8"))):
        found = kept["seeds"] if kept["settings"] == settings else []
    with progress(quiet=False) as listener:
        for seed in range(asked.seeds):
            if seed in (one["seed"] for one in found):
                continue
            found.append(measure(asked, seed, listener))
            ranks = {"allocations": allocations(found), "correlations": correlations(found)}
            result = write_results(out, settings, {**ranks, "seeds": found})
    draw(result, out.with_suffix(".png"))
    print_tables(result)


if __name__ == "__main__":
    main()
