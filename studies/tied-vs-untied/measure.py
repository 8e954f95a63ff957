"""What does it cost that q/k/v, and gate and up, share one bit-width, at equal bytes?

``python studies/tied-vs-untied/measure.py --model MODEL --corpus TEXT`` makes, for every seed and
budget, an untied and a tied plan from the same score of the same compressed weights: from the
score alone, and from the score as corrected by the same number of measured plans. To tell what
the tie costs from what the score gets wrong, it also measures the untied plan's *projection*: the
tied plan of the same bytes whose groups have, as nearly as possible, the bytes that the untied
plan gave them, which no score has chosen. All plans are measured on the same search text and then
on held-out text. A seed deals the documents of the text anew to its parts and draws the labels.
It prints a table, and writes results and a plot.
"""

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from autocomp.data.deal import dealt
from autocomp.evaluate.intervals import paired
from autocomp.models.device import resolve_device
from autocomp.search.clock import Clock
from autocomp.search.context import SearchContext
from autocomp.search.correction import Evidence, fit
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.experiment import described, heldout_losses, shared_settings, write_results
from autocomp.search.knapsack import Problem, Solution, solve
from autocomp.search.objectives import objective_of
from autocomp.search.scoring import ScoreTable, score_options
from autocomp.search.setup import Setup
from autocomp.search.stored import search_context
from autocomp.search.workbench import Workbench

OUT = Path(__file__).parent / "results" / "tied-vs-untied.json"
BITS = (2, 3, 4, 5, 6)
UNIFORM_BITS = (2, 3, 4)
DRAWS = 20


def study_config(asked: argparse.Namespace, seed: int, corpus: Path, tied: bool) -> StudyConfig:
    """Return the settings of one seed and space: GPTQ levels of the decoder linears."""
    return load_config(
        None,
        {
            **shared_settings(asked, seed, corpus),
            "device": asked.device,
            "data.rungs": [asked.tokens],
            "data.heldout_tokens": asked.tokens,
            "space.name": "bits",
            "space.linear": [
                f"gptq-w{bits}" + f"g{asked.group}" * (asked.group > 0) for bits in BITS
            ],
            "space.embedding": ["dense"],
            "space.tied": tied,
        },
    )


class Bench:
    """One seed: the model, the scores of all options, and every plan measured once.

    Args:
        asked: The command line.
        seed: Of the labels that the score draws.
        corpus: The text.
        listener: Told of progress.
    """

    def __init__(
        self, asked: argparse.Namespace, seed: int, corpus: Path, listener: Progress
    ) -> None:
        self.listener = listener
        self.setups = {
            tied: Setup.of(study_config(asked, seed, corpus, tied)) for tied in (False, True)
        }
        self.work = Workbench(self.setups[False].config, listener)
        self.objective = objective_of(self.work)
        lists = self.setups[False].site_lists
        self.scores: ScoreTable = score_options(self.work, lists, listener, Clock())
        self._losses: dict[str, tuple[float, ...]] = {}

    def context(self, tied: bool, budget: int) -> SearchContext:
        """Return what plans of a space are made from."""
        context = search_context(self.setups[tied], self.scores)
        return replace(context, budget_bytes=budget)

    def budget(self, bits: float) -> int:
        """Return the bytes of all linears at so many bits, between the two uniform plans."""
        context, low = self.context(False, 0), math.floor(bits)
        sizes = [uniform(context, level).cost for level in (low, min(low + 1, max(BITS)))]
        share = bits - low
        return int((1 - share) * sizes[0] + share * sizes[1])

    def losses(self, plan: Plan) -> tuple[float, ...]:
        """Return the loss of every unit of the search text."""
        if plan.digest not in self._losses:
            outcome = evaluate_plan(self.objective, self.work, plan)
            self._losses[plan.digest] = outcome.unit_loss
        return self._losses[plan.digest]

    def heldout(self, plan: Plan) -> tuple[float, ...]:
        """Return the KL of every held-out window."""
        return tuple(heldout_losses(self.work, plan))


def uniform(context: SearchContext, bits: int) -> Solution:
    """Return the plan with so many bits in every linear."""
    problem, lists = context.problem, context.space.lists
    choice = [
        next(
            (i for i, s in enumerate(lists[g.name]) if s.quantizer and s.quantizer.bits == bits), 0
        )
        for g in problem.groups
    ]
    return problem.solution(np.array(choice), np.zeros(len(problem.bypasses), dtype=bool))


def corrected(bench: Bench, context: SearchContext, plans: int, seed: int) -> Plan:
    """Return the best of so many measured plans: each solves the scores corrected so far.

    The uniform ones come first, whatever their bytes, and are the same in both spaces; then the
    solution of the uncorrected scores.
    """
    rng, told, tried = np.random.default_rng(seed), [], {}

    def measure(solution: Solution) -> None:
        plan = context.space.decode(context.params(solution))
        tried[plan.digest] = plan, solution.cost
        loss = float(np.mean(bench.losses(plan)))
        told.append(Evidence(solution.choice, solution.bypassed, loss))

    for bits in UNIFORM_BITS:
        measure(uniform(context, bits))
    measure(solve(context.problem, context.budget_bytes))
    while len(told) < plans:
        correction = fit(context.effects, told, focus_of(told, context))
        factors = correction.factors
        for _ in range(DRAWS):
            found = solve(correction.apply(factors), context.budget_bytes)
            plan = context.space.decode(context.params(found))
            if plan.digest not in tried:
                break
            factors = correction.sampled_factors(rng, 0.5)
        else:
            break
        measure(found)
    fitting = [plan for plan, cost in tried.values() if cost <= context.budget_bytes]
    return min(fitting, key=lambda plan: float(np.mean(bench.losses(plan))))


def focus_of(told: Sequence[Evidence], context: SearchContext) -> float:
    """Return the lowest loss measured at the budget."""
    fitting = [
        plan.loss
        for plan in told
        if context.problem.solution(plan.choice, plan.bypassed).cost <= context.budget_bytes
    ]
    return min(fitting)


def projected(untied: SearchContext, tied: SearchContext, plan: Plan) -> Plan:
    """Return the tied plan of the same bytes that gives groups the bytes of an untied one.

    Minimised is ``Σ_group size · (bits − bits of the untied plan)²`` over all tied plans within
    the budget; no score has a part in it.
    """
    groups = {group[0]: group for group in tied.space.sketch.groups}
    row_of = {group.name: row for row, group in enumerate(untied.problem.groups)}
    choice, _ = untied.decisions(untied.space.encode(plan))
    deviations = np.full(tied.problem.score.shape, np.inf)
    for row, group in enumerate(tied.problem.groups):
        members = [row_of[site] for site in groups[group.name]]
        given = sum(int(untied.problem.cost[m, choice[m]]) for m in members)
        weights = sum(math.prod(tied.space.sketch[site].shape) for site in groups[group.name])
        deviations[row, : len(group.cost)] = (8 * (group.cost - given)) ** 2 / weights
    nearest: Problem = tied.problem.with_scores(deviations, tied.problem.bypass_score)
    return tied.space.decode(tied.params(solve(nearest, tied.budget_bytes)))


def disagreeing(tied: SearchContext, plan: Plan) -> float:
    """Return the share of groups of several sites to whose sites a plan gives different bits."""
    together = [group for group in tied.space.sketch.groups if len(group) > 1]
    return float(np.mean([len({plan[site] for site in group}) > 1 for group in together]))


def measure(asked: argparse.Namespace, seed: int, listener: Progress) -> list[dict[str, Any]]:
    """Return a row a plan of one seed."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = dealt(asked.corpus, seed, Path(folder))
        return compared(asked, Bench(asked, seed, corpus, listener), seed)


def compared(asked: argparse.Namespace, bench: Bench, seed: int) -> list[dict[str, Any]]:
    """Return the rows of a bench."""
    rows = []
    for bits in asked.bits:
        budget = bench.budget(bits)
        free, tied = (bench.context(flag, budget) for flag in (False, True))
        plans: dict[str, dict[str, Plan]] = {
            "score": {
                name: context.space.decode(context.params(solve(context.problem, budget)))
                for name, context in (("untied", free), ("tied", tied))
            },
            "corrected": {
                name: corrected(bench, context, asked.plans, seed)
                for name, context in (("untied", free), ("tied", tied))
            },
        }
        for by, found in plans.items():
            found["projection"] = projected(free, tied, found["untied"])
            for name, plan in found.items():
                rows.append(
                    {
                        "seed": seed,
                        "bits": bits,
                        "budget_bytes": budget,
                        "by": by,
                        "plan": name,
                        "weight_bytes": free.exact_bytes(plan),
                        "groups_disagreeing": disagreeing(tied, plan),
                        "searched": list(bench.losses(plan)),
                        "heldout": list(bench.heldout(plan)),
                    }
                )
                loss = float(np.mean(rows[-1]["heldout"]))
                bench.listener.log(
                    f"seed {seed}, {bits} bits, {by}, {name}: held-out KL {loss:.4f}"
                )
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a budget, kind of score and tied plan: its held-out KL over the untied one's.

    The ratio is the geometric mean over seeds; the interval of each seed's difference is over
    windows, in pairs.
    """
    keys = dict.fromkeys((row["bits"], row["by"]) for row in rows)
    found = []
    for bits, by in keys:
        mine = [row for row in rows if (row["bits"], row["by"]) == (bits, by)]
        free = {row["seed"]: row for row in mine if row["plan"] == "untied"}
        for plan in ("tied", "projection"):
            logs, pairs = [], []
            for row in (row for row in mine if row["plan"] == plan):
                rival = free[row["seed"]]
                pair = paired(row["heldout"], rival["heldout"])
                pairs.append([pair.difference, pair.low, pair.high])
                logs.append(math.log(np.mean(row["heldout"]) / np.mean(rival["heldout"])))
            spread = float(np.std(logs, ddof=1)) if len(logs) > 1 else None
            found.append(
                {
                    "bits": bits,
                    "by": by,
                    "plan": plan,
                    "untied_kl_nats": float(
                        np.mean([np.mean(r["heldout"]) for r in free.values()])
                    ),
                    "ratio": math.exp(float(np.mean(logs))),
                    "log_ratio_sd_over_seeds": spread,
                    "difference_low_high": pairs,
                    "groups_disagreeing": float(
                        np.mean([row["groups_disagreeing"] for row in free.values()])
                    ),
                }
            )
    return found


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the ratio of tied to untied held-out KL by budget, a point a seed."""
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    free = {(r["seed"], r["bits"], r["by"]): r for r in rows if r["plan"] == "untied"}
    for index, by in enumerate(("score", "corrected")):
        for plan, marker in (("tied", "o"), ("projection", "x")):
            mine = [row for row in rows if (row["by"], row["plan"]) == (by, plan)]
            ratios = [
                np.mean(row["heldout"]) / np.mean(free[row["seed"], row["bits"], by]["heldout"])
                for row in mine
            ]
            places = [row["bits"] + 0.04 * (2 * index - 1) for row in mine]
            axes.scatter(places, ratios, marker=marker, color=f"C{index}", label=f"{plan}, {by}")
    axes.axhline(1, color="#9aa5b1", linewidth=1)
    axes.set_xlabel("average bits of the linears")
    axes.set_ylabel("held-out KL over that of the untied plan")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every seed and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bits", type=float, nargs="+", default=[3.0, 3.5, 4.0])
    parser.add_argument("--group", type=int, default=64, help="of the quantizer, 0: whole rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plans", type=int, default=16, help="measured by a corrected search")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=16384, help="of search and of held-out text")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    settings, device = described(asked), resolve_device(asked.device)
    rows: list[dict[str, Any]] = []
    with progress(quiet=False) as listener:
        for seed in range(asked.seeds):
            rows += measure(asked, seed, listener)
            found = {"summary": summary(rows), "rows": rows}
            write_results(asked.out, settings, found, device)
    draw(rows, asked.out.with_suffix(".png"))
    print("| bits | by | plan | untied KL | ratio to untied | groups that disagree |")
    print("|---|---|---|---|---|---|")
    for row in found["summary"]:
        print(
            f"| {row['bits']} | {row['by']} | {row['plan']} | {row['untied_kl_nats']:.4f} | "
            f"{row['ratio']:.3f} | {row['groups_disagreeing']:.0%} |"
        )


if __name__ == "__main__":
    main()
