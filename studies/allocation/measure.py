"""Who should give up how many weights, and is a mask worth it, at equal bytes?

``python studies/allocation/measure.py MODEL --corpus TEXT`` takes, for every row, the bytes of one
uniform mask and fills them in other ways: with the allocations of OWL and SAMSP, and with the
knapsack over the score alone, and with what a search finds; then with the controls that know no
mask, all bits and dropped sub-blocks, and with everything at once. Rows are 2:4 and 50 % on 4-bit
codes, where the controls are searched too, and 50 to 70 % of weights in the model's own dtype. All
plans are measured on held-out text. A seed deals the documents of the text anew to its parts and
draws the labels. It prints a table, and writes results and a plot.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.core.errors import InfeasibleError
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.data.deal import dealt
from autocomp.evaluate.intervals import paired
from autocomp.search.allocate import allocated, share_kept
from autocomp.search.clock import Clock
from autocomp.search.context import SearchContext
from autocomp.search.experiment import (
    described,
    heldout_losses,
    results_path,
    shared_settings,
    write_results,
)
from autocomp.search.knapsack import Solution, solve
from autocomp.search.run import Search
from autocomp.search.scoring import score_options
from autocomp.search.setup import Setup
from autocomp.search.stored import search_context
from autocomp.search.workbench import Workbench

RESULTS = Path(__file__).parent / "results"
ALLOCATIONS = ("owl", "samsp")
ARMS = (
    "uniform", *ALLOCATIONS, "knapsack", "search",
    "bits", "bits searched", "bypass", "all", "all searched",
)  # fmt: skip
MASKS = ARMS[:5]
"""Ways to divide one mask; the others are controls, and everything at once."""

PERCENTS = tuple(range(20, 95, 5))


@dataclass(frozen=True)
class Row:
    """One question: a kind of mask, and the bytes of its uniform plan.

    Args:
        name: What a table calls it.
        uniform: Token of the option that the uniform plan has in every linear.
        masks: Tokens of the options that are divided.
        whole: Token of the option that keeps every weight.
        primary: Whether controls are searched too; the other rows search the masks alone.
    """

    name: str
    uniform: str
    masks: tuple[str, ...]
    whole: str
    primary: bool = True


def rows(group: int) -> tuple[Row, ...]:
    """Return the rows, with codes in groups of a size."""
    codes = f"gptq-w4g{group}"
    patterns = tuple(f"sparsegpt-{keep}:4+{codes}" for keep in (1, 2, 3))
    coded = tuple(f"sparsegpt-s{percent}+{codes}" for percent in PERCENTS)
    plain = tuple(f"sparsegpt-s{percent}" for percent in PERCENTS)
    return (
        Row("2:4, 4 bits", patterns[1], (*patterns, codes), codes),
        Row("50 %, 4 bits", f"sparsegpt-s50+{codes}", (*coded, codes), codes),
        *(
            Row(f"{percent} %, bf16", f"sparsegpt-s{percent}", (*plain, "dense"), "dense", False)
            for percent in (50, 60, 70)
        ),
    )


def bits(group: int) -> tuple[str, ...]:
    """Return the options of the control that has bits alone."""
    return (*(f"gptq-w{level}g{group}" for level in (2, 3, 4, 5, 6, 8)), "dense")


def settings(asked: argparse.Namespace, seed: int, corpus: Path) -> dict[str, Any]:
    """Return the settings that all of a seed share."""
    return {
        **shared_settings(asked, seed, corpus),
        "data.rungs": [asked.tokens // 4, asked.tokens],
        "data.heldout_tokens": asked.tokens,
        "space.embedding": ["dense"],
        "search.allocations": list(ALLOCATIONS),
        "search.ladder": 1,
        "search.trials": asked.trials,
        "search.score": asked.score,
    }


class Bench:
    """One seed: the model, the scores of all options, and every plan measured once.

    Args:
        asked: The command line.
        common: Settings of the seed.
        listener: Told of progress.
    """

    def __init__(
        self, asked: argparse.Namespace, common: Mapping[str, Any], listener: Progress
    ) -> None:
        self.common, self.listener = common, listener
        masks = (token for row in rows(asked.group) for token in row.masks)
        linear = list(dict.fromkeys([*masks, *bits(asked.group)]))
        config = load_config(None, {**common, "space.linear": linear, "space.bypass": True})
        self.setup, self.work = Setup.of(config), Workbench(config, listener)
        self.table = score_options(
            self.work, self.setup.site_lists, listener, Clock(), asked.score, None, ALLOCATIONS
        )
        self._losses: dict[str, list[float]] = {}

    def context(self, tokens: Sequence[str], budget: int, *, bypass: bool) -> SearchContext:
        """Return what plans of some options of the linears within a budget are made from."""
        allowed = {LayerSpec.parse(token) for token in tokens}
        lists = {}
        for name, options in self.setup.lists.items():
            kind = self.setup.sketch[name].kind
            if kind == "linear":
                lists[name] = tuple(spec for spec in options if spec in allowed)
            elif kind != "subblock" or bypass:
                lists[name] = options
        context = search_context(self.setup.with_lists(lists), self.table)
        return replace(context, budget_bytes=budget)

    def uniform(self, token: str) -> Plan:
        """Return the plan with one option in every linear."""
        spec = LayerSpec.parse(token)
        return Plan(
            {s.name: spec if s.kind == "linear" else DENSE for s in self.setup.sketch.sites}
        )

    def losses(self, plan: Plan) -> list[float]:
        """Return the KL of every held-out window, nats a token."""
        if plan.digest not in self._losses:
            self._losses[plan.digest] = heldout_losses(self.work, plan)
        return self._losses[plan.digest]

    def searched(self, tokens: Sequence[str], budget: int, *, bypass: bool) -> Plan | None:
        """Return the best plan that a search measures within a budget."""
        space = {
            "space.linear": list(dict.fromkeys(tokens)),
            "space.bypass": bypass,
            "budget.max_bytes": budget,
        }
        with tempfile.TemporaryDirectory() as folder:
            config = load_config(None, {**self.common, **space})
            search = Search(config, Path(folder), None, self.listener)
            search.run_trials(search.contexts())
            found = [r for r in search.study.records() if r.feasible and r.loss is not None]
        best = min(found, key=lambda record: record.loss or 0.0, default=None)
        return None if best is None else best.plan

    def kept(self, plan: Plan) -> dict[str, float]:
        """Return the share of its weights that every linear keeps."""
        sketch = self.setup.sketch
        return {
            site.name: 0.0
            if plan[sketch.owner[site.name]] != DENSE
            else share_kept(plan[site.name], "mask", site.shape)
            for site in sketch.sites
            if site.kind == "linear"
        }


def plans(bench: Bench, row: Row, group: int, *, searched: bool) -> dict[str, Plan]:
    """Return the plan of every arm that has one within the bytes of the uniform mask."""
    uniform = bench.uniform(row.uniform)
    budget = bench.setup.spent(uniform)
    control, everything = bits(group), (*row.masks, *bits(group))
    spaces = {
        "knapsack": bench.context(row.masks, budget, bypass=False),
        "bits": bench.context(control, budget, bypass=False),
        "bypass": bench.context((row.whole,), budget, bypass=True),
        "all": bench.context(everything, budget, bypass=True),
    }

    def plan(context: SearchContext, solution: Solution) -> Plan:
        return context.space.decode(context.params(solution))

    found: dict[str, Plan | None] = {"uniform": uniform}
    for token in ALLOCATIONS:
        solution = allocated(spaces["knapsack"], token)
        found[token] = None if solution is None else plan(spaces["knapsack"], solution)
    for name, context in spaces.items():
        try:
            found[name] = plan(context, solve(context.problem, budget))
        except InfeasibleError:
            bench.listener.log(f"{row.name}: {name} does not reach {budget:,} bytes")
    if searched:
        found["search"] = bench.searched(row.masks, budget, bypass=False)
    if searched and row.primary:
        found["bits searched"] = bench.searched(control, budget, bypass=False)
        found["all searched"] = bench.searched(everything, budget, bypass=True)
    return {name: found[name] for name in ARMS if found.get(name) is not None}


def measure(asked: argparse.Namespace, seed: int, listener: Progress) -> dict[str, Any]:
    """Return what one seed gives."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        common = settings(asked, seed, dealt(asked.corpus, seed, Path(folder)))
        bench = Bench(asked, common, listener)
        for row in rows(asked.group):
            searched = seed < asked.searched_seeds
            for name, plan in plans(bench, row, asked.group, searched=searched).items():
                losses = bench.losses(plan)
                found.append(
                    {
                        "row": row.name,
                        "arm": name,
                        "bytes": bench.setup.spent(plan),
                        "heldout": losses,
                        "kept": bench.kept(plan),
                    }
                )
                listener.log(f"seed {seed}, {row.name}, {name}: KL {np.mean(losses):.4f}")
    return {"seed": seed, "signals": bench.table.signals, "rows": found}


def summary(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a line a row and arm: held-out KL over the uniform mask's, over seeds in pairs."""
    kls = {
        (row["row"], row["arm"], one["seed"]): float(np.mean(row["heldout"]))
        for one in found
        for row in one["rows"]
    }
    lines = []
    for row, arm in dict.fromkeys(key[:2] for key in kls):
        seeds = [seed for r, a, seed in kls if (r, a) == (row, arm)]
        mine, base = (
            [math.log(max(kls[row, name, seed], 1e-9)) for seed in seeds]
            for name in (arm, "uniform")
        )
        pair = paired(mine, base)
        lines.append(
            {
                "row": row,
                "arm": arm,
                "kl_nats": math.exp(float(np.mean(mine))),
                "ratio": math.exp(pair.difference),
                "interval": [math.exp(min(v, 700.0)) for v in (pair.low, pair.high)]
                if len(seeds) > 1
                else None,
                "better": sum(a < b for a, b in zip(mine, base, strict=True)),
                "of": len(seeds),
            }
        )
    return lines


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw held-out KL over the uniform mask's, a bar an arm, a panel a row."""
    names = list(dict.fromkeys(line["row"] for line in result["summary"]))
    figure = Figure(figsize=(3 * len(names), 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        mine = {line["arm"]: line["ratio"] for line in result["summary"] if line["row"] == name}
        colours = ["C0" if arm in MASKS else "C7" for arm in mine]
        panel.bar(range(len(mine)), list(mine.values()), color=colours)
        panel.set_xticks(range(len(mine)), list(mine), rotation=60, ha="right", fontsize=7)
        panel.set_yscale("log")
        panel.axhline(1, color="#9aa5b1", linewidth=1)
        panel.set_title(name, fontsize=9)
    panels[0].set_ylabel("held-out KL over the uniform mask's")
    figure.savefig(path)


def print_table(result: Mapping[str, Any]) -> None:
    """Print what the README states."""
    names = list(dict.fromkeys(line["row"] for line in result["summary"]))
    print("| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for arm in ARMS:
        mine = {line["row"]: line for line in result["summary"] if line["arm"] == arm}
        cells = [
            f"{mine[n]['kl_nats']:.4f} ({mine[n]['ratio']:.2f})" if n in mine else ""
            for n in names
        ]
        print(f"| {arm} | {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the seeds that the results do not hold yet, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--group", type=int, default=64, help="group size of the codes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--searched-seeds", type=int, default=3, help="of them, with searches")
    parser.add_argument("--trials", type=int, default=12, help="a search")
    parser.add_argument("--score", default="kronecker")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=4096, help="of search and of held-out text")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens")
    parser.add_argument("--out", type=Path, help="results/MODEL.json by default")
    asked = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    out, told = results_path(asked, RESULTS), described(asked, "seeds", "searched_seeds")
    found: list[dict[str, Any]] = []
    if out.exists() and (kept := json.loads(out.read_text(encoding="utf-8"))):
        found = kept["seeds"] if kept["settings"] == told else []
    with progress(quiet=False) as listener:
        for seed in range(asked.seeds):
            if seed in (one["seed"] for one in found):
                continue
            found.append(measure(asked, seed, listener))
            write_results(out, told, {"summary": summary(found), "seeds": found})
    result = json.loads(out.read_text(encoding="utf-8"))
    draw(result, out.with_suffix(".png"))
    print_table(result)


if __name__ == "__main__":
    main()
