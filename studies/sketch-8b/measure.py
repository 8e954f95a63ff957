"""What a search of an 8B model costs beside evaluating: bookkeeping, solving and memory.

``python studies/sketch-8b/measure.py`` searches a model that has the shape of Llama 3 8B and no
weights. Its scores are made up, and a plan's loss is a made-up function of its options. All else
is what a search does: the sketch, the option lists, the knapsack, the correction fitted to all
that was measured, proposals, and a study on a journal file. It prints what that took and writes
it.
"""

import argparse
import cProfile
import json
import math
import pstats
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig

from autocomp.config import StudyConfig, fingerprint, load_config
from autocomp.core.cost import WEIGHT_BYTES
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.core.registry import DRIVERS, SAMPLERS
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import Sketch
from autocomp.evaluate.record import hardware, versions
from autocomp.search.ask import Ask
from autocomp.search.clock import Clock, peak_rss_bytes
from autocomp.search.context import SearchContext
from autocomp.search.correction import prior_factor
from autocomp.search.drivers.job import Job, Report
from autocomp.search.drivers.queue import TrialQueue
from autocomp.search.gate import Gate
from autocomp.search.records import Measured, NewTrial, TrialRecord
from autocomp.search.scoring import ScoreTable
from autocomp.search.setup import Setup
from autocomp.search.stored import search_context
from autocomp.search.study import Study

GRIDS = ("w2g64", "w2g32", "w3g64", "w3g32", "w4g64", "w4g32", "w6g64", "w8g64")
LINEAR = tuple(f"gptq-{grid}" for grid in GRIDS)
EMBEDDING = ("gptq-w4g64", "gptq-w6g64", "rtn-w8g64", "dense")
BUDGET = "3.9GB"
UNITS = 32
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
}


def settings(folder: Path, trials: int, seed: int) -> StudyConfig:
    """Write the model's config, which is all that there is of it, and return the study's."""
    LlamaConfig(**SHAPE).save_pretrained(folder)
    return load_config(
        None,
        {
            "model": str(folder),
            "seed": seed,
            "space.linear": LINEAR,
            "space.embedding": EMBEDDING,
            "budget.max_bytes": BUDGET,
            "search.trials": trials,
        },
    )


def made_up_scores(setup: Setup, seed: int) -> ScoreTable:
    """Return scores: 4 to the power of minus the bits, times the size of the site, times luck."""
    rng = SeedTree(seed).child("scores").numpy()
    options = {}
    for name, specs in setup.site_lists.items():
        if setup.sketch[name].kind == "subblock":
            continue
        scale = 1e-10 * math.prod(setup.sketch[name].shape) * rng.lognormal(0, 1)
        options[name] = {
            spec.token(): 0.0 if spec.quantizer is None
            else scale * 4.0 ** (2 - spec.quantizer.bits) * rng.lognormal(0, 0.1)
            for spec in specs
        }  # fmt: skip
    drop = {site.name: float(rng.lognormal(-1, 1)) for site in setup.sketch.subblocks()}
    return ScoreTable(options, drop)


def now() -> NDArray[np.float64]:
    """Return the wall and the processor's time, seconds."""
    return np.array([time.perf_counter(), time.process_time()])


class MadeUp:
    """A search whose evaluations cost nothing: proposals as ever, losses from a formula.

    The loss is ``S(1 + S/2)``, ``S`` the scores times the factors of their classes and of sites;
    units of the text have it times a profile of their own and a little noise.

    Args:
        setup: Space and costs.
        context: What proposals are made from.
        clock: Gets the stage ``propose``.
    """

    def __init__(self, setup: Setup, context: SearchContext, clock: Clock) -> None:
        self.setup, self.context, self.clock = setup, context, clock
        self.seeds = SeedTree(setup.config.seed)
        rng, problem = self.seeds.child("truth").numpy(), context.problem
        self.truth = problem.score.copy()
        for row, group in enumerate(problem.groups):
            names = context.classes[group.name]
            factors = [prior_factor(name) * rng.lognormal(0, 0.1) for name in names]
            self.truth[row, : len(names)] *= np.array(factors) * rng.lognormal(0, 0.5)
        self.profile = rng.lognormal(0, 0.3, UNITS)
        self.evaluated = np.zeros(2)

    def propose(self, index: int, told: Sequence[TrialRecord]) -> NewTrial | None:
        """Return the proposal of a logical trial, as a search does."""
        with self.clock.time("propose"):
            proposal = SAMPLERS[self.setup.config.search.sampler](
                Ask(index, self.seeds, [self.context], told)
            )
        if proposal is None:
            return None
        with self.clock.time("price"):
            costs = self.setup.costs(proposal.plan)
            return NewTrial(
                logical=index,
                params=proposal.params,
                distributions=self.setup.space.distributions(),
                plan=proposal.plan,
                origin=proposal.origin,
                family=proposal.family,
                weight_bytes=int(costs[WEIGHT_BYTES]),
                constraints=self.setup.violation(proposal.plan),
                details=proposal.details,
                costs=costs,
            )

    def gate(self, trial: TrialRecord, before: Sequence[TrialRecord]) -> Gate | None:
        """Return what a trial has to keep up with, as a search does; nobody asks it here."""
        with self.clock.time("gate"):
            return Gate.of(before, trial.cost, UNITS)

    def out_of_time(self) -> bool:
        """Return that there is time."""
        return False

    def evaluate(self, job: Job, keep_alive: Callable[[], object]) -> Report:
        """Return the loss of a plan; the time that this takes is not counted."""
        begun = now()
        measured = self._measure(job.plan, job.number)
        keep_alive()
        self.evaluated += now() - begun
        return Report(measured, complete=True)

    def _measure(self, plan: Plan, number: int) -> Measured:
        problem = self.context.problem
        choice, bypassed = self.context.decisions(self.setup.space.encode(plan))
        rows = np.flatnonzero(problem.active(bypassed))
        total = float(self.truth[rows, choice[rows]].sum() + problem.bypass_score[bypassed].sum())
        noise = np.random.default_rng(number).lognormal(0, 0.02, UNITS)
        units = total * (1 + total / 2) * self.profile * noise
        return Measured(loss=float(units.mean()), unit_loss=tuple(units.tolist()), tokens=16384)


def sizes(setup: Setup, sketch: Sketch) -> dict[str, Any]:
    """Return how large the problem is."""
    linears = [site for site in sketch.sites if site.kind == "linear"]
    return {
        "linears": len(linears),
        "options_a_linear": len(setup.lists[linears[0].name]),
        "decisions": len(setup.weight_groups) + len(setup.droppable),
        "log10_plans": round(setup.space.log10_size, 1),
        "budget": BUDGET,
    }


def search(trials: int, seed: int) -> dict[str, Any]:
    """Run one search and return what it took."""
    start_rss = peak_rss_bytes()
    with tempfile.TemporaryDirectory() as folder:
        begun, clock = now(), Clock()
        with clock.time("set up"):
            config = settings(Path(folder) / "model", trials, seed)
            setup = Setup.of(config)
            setup.check_feasible()
        made_up = now()
        scores = made_up_scores(setup, seed)
        begun += now() - made_up
        with clock.time("context"):
            context = search_context(setup, scores)
            _ = context.effects, context.uniforms
        study = Study.open(None, Path(folder), fingerprint=fingerprint(config))
        study.set_lists(setup.lists)
        source = MadeUp(setup, context, clock)
        queue = TrialQueue(study, source, trials, Silent(), clock)
        DRIVERS["inline"](config.search).run(queue, source.evaluate, lambda: source.evaluate)
        wall, processor = now() - begun - source.evaluated
        records = study.records()
        journal = sum(path.stat().st_size for path in Path(folder).glob("journal*"))
    losses = [record.loss for record in records if record.loss is not None]
    return {
        "settings": {"trials": trials, "seed": seed, "sampler": config.search.sampler},
        "size": sizes(setup, setup.sketch),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "seconds": round(float(wall), 2),
        "processor_seconds": round(float(processor), 2),
        "seconds_a_trial": round(float(wall) / len(records), 4),
        "stages": {s.name: round(s.seconds, 2) for s in clock.stages.values()},
        "rss_before_bytes": start_rss,
        "peak_rss_bytes": peak_rss_bytes(),
        "journal_bytes": journal,
        "trials": len(records),
        "best_over_first_uniform": round(min(losses) / losses[0], 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the search, print and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", type=int, default=0, help="functions to list, slowest first")
    out = Path(__file__).parent / "results" / "sketch-8b.json"
    parser.add_argument("--out", type=Path, default=out)
    asked = parser.parse_args(arguments)
    profile = cProfile.Profile()
    if asked.profile:
        profile.enable()
    found = search(asked.trials, asked.seed)
    profile.disable()
    if asked.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(asked.profile)
        return
    print(json.dumps(found, indent=1))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
