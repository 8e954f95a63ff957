"""Which sampler finds the best plan of a recorded study in fewest trials?

``python studies/sampler-replay/measure.py STUDY_DIR`` replays a study, which loads no model: every
sampler searches it once a seed, all of a seed on the same stand-ins for plans that the study did
not measure. It prints the best loss by number of trials, with 95 % intervals of the ratio to a
reference sampler over the seeds, in pairs, and writes results and a plot.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from autocomp.cli.libraries import quiet_libraries
from autocomp.core.errors import ConfigError
from autocomp.core.registry import SAMPLERS
from autocomp.evaluate.intervals import paired
from autocomp.evaluate.record import hardware, versions
from autocomp.search.replay import Replay, replay_search
from autocomp.search.study import Study

OUT = Path(__file__).parent / "results" / "sampler-replay.json"
CONFIDENCE = 0.95


def run(replay: Replay, sampler: str, seed: int, trials: int) -> dict[str, Any]:
    """Return one search: the best loss and the tokens by the end of each trial."""
    begun = time.perf_counter()
    trace = replay_search(replay, sampler, seed, trials=trials)
    return {
        "sampler": sampler,
        "seed": seed,
        "best": list(trace.best()),
        "tokens": list(trace.tokens),
        "seconds": time.perf_counter() - begun,
    }


def best_at(found: Mapping[str, Any], trials: int) -> float:
    """Return the best loss of a search after some trials, or after its last."""
    curve: list[float] = found["best"]
    return curve[min(trials, len(curve)) - 1]


def compare(
    mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], trials: int
) -> dict[str, float]:
    """Return the geometric mean of a sampler's best losses and of their ratios to another's.

    Args:
        mine: Its searches, a seed each.
        theirs: Those of the reference, of the same seeds.
        trials: After how many trials.
    """
    logs, others = (
        [math.log(best_at(found, trials)) for found in searches] for searches in (mine, theirs)
    )
    ratio = paired(logs, others, confidence=CONFIDENCE)
    return {
        "trials": trials,
        "loss": math.exp(float(np.mean(logs))),
        "ratio": math.exp(ratio.difference),
        "low": math.exp(ratio.low),
        "high": math.exp(ratio.high),
    }


def summary(
    searches: Mapping[str, Sequence[Mapping[str, Any]]], reference: str, at: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a row a sampler."""
    return [
        {
            "sampler": sampler,
            "at": [compare(mine, searches[reference], trials) for trials in at],
            "tokens": float(np.mean([found["tokens"][-1] for found in mine])),
            "seconds_a_trial": float(
                np.mean([found["seconds"] / len(found["best"]) for found in mine])
            ),
        }
        for sampler, mine in searches.items()
    ]


def draw(searches: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, path: Path) -> None:
    """Draw the best loss by trials: geometric mean over the seeds, and the middle half of them."""
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for index, (sampler, mine) in enumerate(searches.items()):
        trials, colour = range(1, max(len(found["best"]) for found in mine) + 1), f"C{index}"
        logs = np.log([[best_at(found, n) for n in trials] for found in mine])
        low, high = np.exp(np.quantile(logs, (0.25, 0.75), axis=0))
        axes.fill_between(trials, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(trials, np.exp(logs.mean(axis=0)), color=colour, label=sampler)
    axes.set_yscale("log")
    axes.set_xlabel("trials")
    axes.set_ylabel(f"best {metric}, replayed")
    axes.grid(which="both", color="#eeeeee")
    axes.legend(fontsize=8)
    figure.savefig(path)


def print_table(rows: Sequence[Mapping[str, Any]], at: Sequence[int]) -> None:
    """Print the best losses and their ratios to the reference."""
    print("| sampler | " + " | ".join(f"{n} trials" for n in at) + " | tokens | s a trial |")
    print("|---" * (len(at) + 3) + "|")
    for row in rows:
        cells = [
            f"{c['loss']:.4f} ({c['ratio']:.2f}, {c['low']:.2f} to {c['high']:.2f})"
            for c in row["at"]
        ]
        print(
            f"| `{row['sampler']}` | {' | '.join(cells)} | {row['tokens']:,.0f} | "
            f"{row['seconds_a_trial']:.3f} |"
        )


def main(arguments: list[str] | None = None) -> None:
    """Search the replay with every sampler and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study_dir", type=Path, help="a study that was searched")
    parser.add_argument(
        "--samplers",
        nargs="+",
        choices=list(SAMPLERS),
        default=list(SAMPLERS),
        help="all by default; gp takes hours where there are 200 parameters",
    )
    parser.add_argument("--reference", choices=list(SAMPLERS), default="auto")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--at", type=int, nargs="+", default=[15, 30, 60], help="trials to report")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    if asked.seeds < 2:
        parser.error("an interval over seeds needs two of them: raise --seeds")
    quiet_libraries()
    study = Study.open_existing(asked.study_dir)
    replays = [Replay.of(study, seed) for seed in range(asked.seeds)]
    names = [asked.reference, *(name for name in asked.samplers if name != asked.reference)]
    searches: dict[str, list[dict[str, Any]]] = {}
    refused: dict[str, str] = {}
    at = sorted({min(count, asked.trials) for count in asked.at})
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            searches[name] = [run(r, name, s, asked.trials) for s, r in enumerate(replays)]
        except ConfigError as error:
            refused[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        rows = summary(searches, asked.reference, at)
        record = {
            "settings": {
                "study": study.fingerprint | {"model": Path(study.fingerprint["model"]).name},
                "metric": study.metric,
                "measured_plans": replays[0].measured,
                "leave_one_out_log_error": replays[0].leave_one_out,
                "budget": replays[0].contexts[0].budget_bytes,
                "ladder_units": list(replays[0].ladder),
                "seeds": asked.seeds,
                "trials": asked.trials,
                "reference": asked.reference,
                "confidence": CONFIDENCE,
                "hardware": hardware(torch.device("cpu")),
                "command": f"measure.py {' '.join(map(str, arguments or sys.argv[1:]))}",
            },
            "versions": versions(),
            "rows": rows,
            "refused": refused,
            "searches": [found for runs in searches.values() for found in runs],
        }
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(searches, study.metric, asked.out.with_suffix(".png"))
    print_table(rows, at)


if __name__ == "__main__":
    main()
