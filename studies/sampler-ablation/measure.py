"""Which way of proposing plans finds the best one for the same number of tokens?

``python studies/sampler-ablation/measure.py run WORK --model M --corpus TEXT --bits 3.0 --arms …``
searches the bits of every decoder linear (GPTQ, group 64, levels 2 to 6, no ties) at an average
number of bits, once an arm and seed, until so many tokens are read. A token counts 1 forward and 2
backward; scoring counts for the arms that use scores. All arms share one model, one layer store,
one search text; the best plan of each is measured on held-out text. ``WORK`` keeps every trial, so
a run that is stopped goes on. ``python studies/sampler-ablation/measure.py report WORK OUT.json``
writes the table and a plot a budget.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.core.plan import Plan
from autocomp.core.registry import SAMPLERS
from autocomp.core.seeds import SeedTree
from autocomp.evaluate.intervals import paired
from autocomp.evaluate.record import hardware, versions
from autocomp.search.ask import Ask, Proposal, Sampler
from autocomp.search.context import Schedule, SearchContext
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.gate import Gate
from autocomp.search.oracle import BACKWARD, GRADIENT_TOKENS, ModelOracle
from autocomp.search.run import Search

LEVELS = (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Arm:
    """A way of proposing plans.

    Args:
        sampler: Name of the sampler.
        moves: Moves of ``auto``; empty allows all.
        trials: Most trials.
        last: Whether its result is its last trial, not the best one on the search text.
        origin: Which of its trials may be its result; empty allows all.
    """

    sampler: str = "auto"
    moves: tuple[str, ...] = ()
    trials: int = 10**6
    last: bool = False
    origin: str = ""


ARMS = {
    "auto": Arm(),
    "score": Arm(moves=("none",), trials=4, origin="knapsack:score"),
    "correction": Arm(moves=("knapsack",)),
    "score-step": Arm(moves=("step",)),
    "gradient-step": Arm(moves=("linear",)),
    "switches": Arm(moves=("mutation", "crossover")),
    "evopress": Arm("evopress", last=True),
    "random": Arm("random"),
    "tpe": Arm("tpe"),
    "nsgaii": Arm("nsgaii"),
    "nsgaiii": Arm("nsgaiii"),
}
"""``score`` is the knapsack with uncorrected scores: its opening holds up to two uniform plans and
the best plan that quantizes only, before that."""


@dataclass
class Trial:
    """A trial, as samplers and the gate read it."""

    number: int
    params: dict[str, int]
    state: str
    loss: float
    origin: str
    details: dict[str, Any]
    unit_loss: tuple[float, ...]
    plan: str
    tokens: int
    cost: float = 0.0
    logical: int = field(init=False)

    def __post_init__(self) -> None:
        self.logical = self.number


class Bench:
    """One loaded model for all arms.

    Args:
        work: Folder of the trials.
        options: Settings by dotted key.
        group: Group size of the quantizer.
    """

    def __init__(self, work: Path, options: Mapping[str, Any], group: int) -> None:
        self.work, self.group = work, group
        with progress(quiet=True) as listener:
            self.search = Search(load_config(None, options), work / "study", None, listener)
        self.context = self.search.contexts()[0]
        self.oracle = ModelOracle(self.search.variants, work / "study")
        self.window = self.search.config.data.window

    def at(self, bits: float) -> SearchContext:
        """Return the context whose budget is that of so many bits a weight on average."""
        low, share = int(bits), bits - int(bits)
        below, above = (self._uniform_bytes(level) for level in (low, min(low + 1, LEVELS[-1])))
        return replace(
            self.context,
            budget_bytes=int(below + share * (above - below)),
            schedule=Schedule(uniforms=2, ladder=1),
        )

    def _uniform_bytes(self, level: int) -> int:
        problem, total = self.context.problem, self.context.problem.fixed_cost
        for group in problem.groups:
            tokens = [spec.token() for spec in self.context.space.lists[group.name]]
            wanted = f"gptq-w{level}g{self.group}"
            total += int(group.cost[tokens.index(wanted) if wanted in tokens else 0])
        return total

    def measure(self, proposal: Proposal, gate: Gate | None) -> tuple[tuple[float, ...], bool]:
        """Return the loss of each unit read, and whether all were."""
        stop = gate.stops if gate is not None else lambda losses: False
        found = evaluate_plan(
            self.search.variants.objective, self.search.variants.base, proposal.plan, stop
        )
        return found.unit_loss, found.complete

    def heldout(self, plan: Plan) -> list[float]:
        """Return the KL of each held-out window, nats a token."""
        bench = self.search.variants.base
        meter = bench.heldout_meter
        bench.candidate.apply(plan, bench.operands)
        windows = range(len(meter.reference.windows))
        head = bench.head_token(plan.layers)
        return list(meter.measure(bench.model, windows, head_token=head).kl_nats)


def sampler_of(arm: Arm) -> Sampler:
    """Return the function that proposes."""
    found: Sampler = SAMPLERS[arm.sampler]
    return found


def read(path: Path) -> list[Trial]:
    """Return the trials of a file."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row.pop("logical", None)
        row["unit_loss"] = tuple(row["unit_loss"])
    return [Trial(**row) for row in rows]


def search(bench: Bench, name: str, bits: float, seed: int, tokens: int) -> Iterator[Trial]:
    """Yield the trials of an arm, those that its file holds first."""
    arm, context = ARMS[name], bench.at(bits)
    path = bench.work / f"{name}-{bits}-{seed}.jsonl"
    told = read(path)
    yield from told
    scoring = (1 + BACKWARD) * bench.search.config.data.calibration_tokens
    spent = told[-1].tokens if told else scoring * (arm.sampler == "auto")
    taken = {tuple(pair) for trial in told for pair in trial.details.get("read", ())}
    while spent < tokens and len(told) < arm.trials:
        ask = Ask(len(told), SeedTree(seed), [context], told, bench.oracle, arm.moves)
        proposal = sampler_of(arm)(ask)
        if proposal is None:
            break
        spent += proposal.details.get("units", 0) * bench.window
        for trial_number, part in proposal.details.get("read", ()):
            if (trial_number, part) not in taken:
                parts = {other for _, other in taken}
                spent += GRADIENT_TOKENS * (1 + BACKWARD + (part not in parts))  # the base's pass
                taken.add((trial_number, part))
        full = proposal.origin in ("uniform", "knapsack:score", "evolution")
        total = bench.search.variants.objective.ladder[-1]
        losses, complete = bench.measure(
            proposal,
            None if full else Gate.of(told, 0.0, total),  # type: ignore[arg-type]
        )
        # What a trial of an evolution measures only tells where it stands: not as published.
        spent += len(losses) * bench.window * (arm.sampler != "evopress")
        trial = Trial(
            number=len(told),
            params=dict(proposal.params),
            state="COMPLETE" if complete else "PRUNED",
            loss=math.fsum(losses) / len(losses),
            origin=proposal.origin,
            details=dict(proposal.details),
            unit_loss=losses,
            plan=proposal.plan.canonical(),
            tokens=spent,
        )
        told.append(trial)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
        yield trial


def best(name: str, trials: Sequence[Trial], tokens: float) -> Trial:
    """Return what an arm gives after so many tokens, of the trials measured to the top."""
    some = [t for t in trials if t.state == "COMPLETE" and t.tokens <= tokens] or list(trials[:1])
    some = [t for t in some if ARMS[name].origin in ("", t.origin)] or some
    return some[-1] if ARMS[name].last else min(some, key=lambda trial: trial.loss)


def run(arguments: argparse.Namespace) -> None:
    """Search every arm and measure its best plan on held-out text."""
    settings = {
        "model": arguments.model,
        "space.name": "bits",
        "space.linear": [f"gptq-w{level}g{arguments.group}" for level in LEVELS],
        "space.embedding": ["dense"],
        "space.bypass": False,
        "data.corpus": arguments.corpus,
        "data.calibration": "corpus",
        "data.window": arguments.window,
        "data.heldout_tokens": arguments.heldout_tokens,
        "search.score": arguments.score,
    }
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, settings, arguments.group)
    held_path = work / "heldout.json"
    held = json.loads(held_path.read_text(encoding="utf-8")) if held_path.exists() else {}
    for bits in arguments.bits:
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            for name in arguments.arms:
                trials = []
                for trial in search(bench, name, bits, seed, arguments.tokens):
                    trials.append(trial)
                    mark = "" if trial.state == "COMPLETE" else " stopped"
                    print(
                        f"{bits} {name} {seed} #{trial.number} {trial.tokens:,} {trial.origin} "
                        f"{trial.loss:.4f}{mark}, best {best(name, trials, math.inf).loss:.4f}",
                        flush=True,
                    )
                for at in (*arguments.at, math.inf):
                    plan = Plan.from_json(json.loads(best(name, trials, at).plan))
                    if plan.digest not in held:
                        held[plan.digest] = bench.heldout(plan)
                        held_path.write_text(json.dumps(held), encoding="utf-8")
                print(
                    f"{bits} {name} {seed} held-out {np.mean(held[plan.digest]):.4f}", flush=True
                )
    (work / "settings.json").write_text(
        json.dumps(
            {
                "settings": settings
                | {key: Path(settings[key]).name for key in ("model", "data.corpus")},
                "command": [Path(word).name for word in sys.argv],
                "hardware": hardware(bench.search.variants.base.device),
            }
        ),
        encoding="utf-8",
    )


def draw(found: Mapping[tuple[str, int], list[Trial]], path: Path) -> None:
    """Draw the searched KL of each arm's result by tokens, a line a seed."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    names = sorted({name for name, _ in found})
    for (name, seed), trials in sorted(found.items()):
        tokens = [trial.tokens for trial in trials if trial.state == "COMPLETE"]
        losses = [best(name, trials, spent).loss for spent in tokens]
        label, colour = (name if seed == 0 else None), f"C{names.index(name) % 10}"
        axes.step(tokens, losses, color=colour, where="post", label=label, linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("searched KL, nats a token")
    axes.legend(fontsize=7)
    figure.savefig(path)


def report(arguments: argparse.Namespace) -> None:
    """Write the table of all arms that a folder holds."""
    work = arguments.work
    held = json.loads((work / "heldout.json").read_text(encoding="utf-8"))
    arms: dict[str, dict[tuple[str, int], list[Trial]]] = {}
    for path in sorted(work.glob("*.jsonl")):
        name, bits, seed = path.stem.rsplit("-", 2)
        arms.setdefault(bits, {})[name, int(seed)] = read(path)
    rows = []
    for bits, found in arms.items():
        for at in (*arguments.at, math.inf):
            for (name, seed), trials in sorted(found.items()):
                top = best(name, trials, at)
                mine = held.get(Plan.from_json(json.loads(top.plan)).digest)
                row: dict[str, Any] = {
                    "bits": float(bits),
                    "arm": name,
                    "seed": seed,
                    "at_tokens": None if math.isinf(at) else at,
                    "tokens": max(t.tokens for t in trials if t.tokens <= at or t is top),
                    "searched_kl": top.loss,
                    "heldout_kl": None if mine is None else float(np.mean(mine)),
                }
                for rival in ("score", "evopress", "auto"):
                    other = found.get((rival, seed)) or found.get((rival, 0))
                    if other is None or mine is None or rival == name:
                        continue
                    theirs = held.get(
                        Plan.from_json(json.loads(best(rival, other, at).plan)).digest
                    )
                    if theirs is not None:
                        pair = paired(mine, theirs)
                        mean = float(np.mean(theirs))
                        row[f"over_{rival}"] = [
                            1 + value / mean for value in (pair.difference, pair.low, pair.high)
                        ]
                rows.append(row)
    about = json.loads((work / "settings.json").read_text(encoding="utf-8"))
    result = {**about, "versions": versions(), "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for bits, found in arms.items():
        draw(found, arguments.out.with_name(f"{arguments.out.stem}-{bits}.png"))
    for row in rows:
        shown = {k: [round(x, 3) for x in v] for k, v in row.items() if isinstance(v, list)}
        print(
            f"{row['bits']} at {row['at_tokens'] or 'end'} {row['arm']:>14} seed {row['seed']} "
            f"searched {row['searched_kl']:.4f} held-out "
            f"{row['heldout_kl'] or math.nan:.4f} {shown}"
        )


def main() -> None:
    """Parse the command line and run."""
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("run")
    first.set_defaults(do=run)
    first.add_argument("work", type=Path)
    first.add_argument("--model", default="smollm2-135m")
    first.add_argument("--corpus", default="pydoc")
    first.add_argument("--bits", type=float, nargs="+", default=[3.0])
    first.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=["score", "auto"])
    first.add_argument("--tokens", type=lambda text: int(float(text)), default=400_000)
    first.add_argument("--at", type=lambda text: int(float(text)), nargs="*", default=[])
    first.add_argument("--seed", type=int, default=0)
    first.add_argument("--seeds", type=int, default=1)
    first.add_argument("--score", default="kronecker")
    first.add_argument("--group", type=int, default=64, help="group size of the quantizer")
    first.add_argument("--window", type=int, default=512)
    first.add_argument("--heldout-tokens", type=int, default=65_536)
    second = commands.add_parser("report")
    second.set_defaults(do=report)
    second.add_argument("work", type=Path)
    second.add_argument("out", type=Path)
    second.add_argument("--at", type=lambda text: int(float(text)), nargs="*", default=[])
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
