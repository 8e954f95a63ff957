"""Does a study of other models help the search of a new one?

``python studies/warm-start/measure.py MODEL MODEL … --corpus TEXT`` searches every model from
nothing, then again warm-started from the studies of all the others (``search.warm_from``), with
the same seeds and budgets. A seed is that of the studies and deals the documents of the text anew
to its parts. It prints the best measured loss after some trials, warm over cold, and writes
results and a plot. Searches are kept under ``--runs`` and go on where they were.
"""

import argparse
import math
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
from autocomp.core.spec import DENSE
from autocomp.cost.bytes import weight_bytes
from autocomp.data.deal import dealt
from autocomp.evaluate.intervals import paired
from autocomp.models import sketch_of
from autocomp.models.device import resolve_device
from autocomp.search.experiment import described, shared_settings, write_results
from autocomp.search.records import TrialRecord
from autocomp.search.run import Search

OUT = Path(__file__).parent / "results" / "warm-start.json"


def study_config(
    asked: argparse.Namespace, model: str, seed: int, sources: Sequence[Path] = ()
) -> StudyConfig:
    """Return the settings of one search; the budget is a share of the uncompressed file."""
    name = f"{Path(asked.corpus).stem}-{seed}"
    corpus = dealt(asked.corpus, seed, Path(asked.runs), name)
    settings = {
        **shared_settings(asked, seed, corpus, model),
        "device": asked.device,
        "data.rungs": [asked.tokens // 4, asked.tokens],
        "data.heldout_tokens": asked.tokens,
        "space.name": asked.space,
        "search.trials": asked.trials,
        "search.warm_from": [str(path) for path in sources],
    }
    sketch = sketch_of(model)
    dense = weight_bytes(sketch, Plan({site.name: DENSE for site in sketch.sites}))
    return load_config(None, settings | {"budget.max_bytes": int(asked.share * dense)})


def place(asked: argparse.Namespace, kind: str, model: str, seed: int) -> Path:
    """Return the directory of one search."""
    return Path(asked.runs) / kind / f"{Path(model).name}-{seed}"


def searched(config: StudyConfig, folder: Path, listener: Progress) -> list[float]:
    """Run a search without its finish, and return the best loss at the budget by trials."""
    search = Search(config, folder, None, listener)
    search.run_trials(search.contexts())
    return best_so_far(search.study.records())


def best_so_far(records: Sequence[TrialRecord]) -> list[float]:
    """Return the lowest loss of a plan within the limits after each trial."""
    losses = [r.loss if r.feasible and r.loss is not None else math.inf for r in records]
    return np.minimum.accumulate(losses).tolist()


def compare(rows: Sequence[Mapping[str, Any]], at: Sequence[int]) -> list[dict[str, Any]]:
    """Return the geometric mean of warm over cold after some trials, and its 95 % interval.

    A row is a seed of a model; the interval is over all of them.
    """
    found = []
    for count in at:
        logs = [
            [math.log(row[kind][min(count, len(row[kind])) - 1]) for row in rows]
            for kind in ("warm", "cold")
        ]
        pair = paired(*logs)
        found.append(
            {
                "trials": count,
                "ratio": math.exp(pair.difference),
                "low": math.exp(pair.low),
                "high": math.exp(pair.high) if pair.high < 700 else None,
                "searches": len(rows),
                "better": sum(warm < cold for warm, cold in zip(*logs, strict=True)),
            }
        )
    return found


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw warm over cold by trials, a thin line a search and their geometric mean."""
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    length = min(len(row[kind]) for row in rows for kind in ("warm", "cold"))
    logs = np.array([np.log(row["warm"][:length]) - np.log(row["cold"][:length]) for row in rows])
    trials = np.arange(1, length + 1)
    for line, row in zip(logs, rows, strict=True):
        models = list(dict.fromkeys(other["model"] for other in rows))
        axes.plot(trials, np.exp(line), color=f"C{models.index(row['model'])}", alpha=0.3)
    axes.plot(trials, np.exp(logs.mean(axis=0)), color="black", label="geometric mean")
    axes.axhline(1, color="#9aa5b1", linewidth=1)
    axes.set_xlabel("trials")
    axes.set_ylabel("best loss, warm over cold")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search every model cold and warm, a seed at a time, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="two or more")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--space", default="joint")
    parser.add_argument("--share", type=float, default=0.3, help="budget over uncompressed bytes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--at", type=int, nargs="+", default=[1, 8, 14, 20, 30, 40])
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=16384, help="of the search text")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--runs", default="runs/warm-start")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    if len(asked.models) < 2:
        parser.error("give at least two models: each is warmed by the others")
    quiet_libraries()
    torch.set_num_threads(1)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    settings = described(asked, "runs")
    settings["models"] = [Path(model).name for model in asked.models]
    rows: list[dict[str, Any]] = []
    with progress(quiet=False) as listener:
        for seed in range(asked.seeds):
            cold = {
                model: searched(
                    study_config(asked, model, seed), place(asked, "cold", model, seed), listener
                )
                for model in asked.models
            }
            for model in asked.models:
                others = [place(asked, "cold", m, seed) for m in asked.models if m != model]
                config = study_config(asked, model, seed, others)
                warm = searched(config, place(asked, "warm", model, seed), listener)
                name = Path(model).name
                rows.append({"model": name, "seed": seed, "cold": cold[model], "warm": warm})
            found = {
                "summary": compare(rows, asked.at),
                "by_model": {
                    name: compare([row for row in rows if row["model"] == name], asked.at)
                    for name in settings["models"]
                },
                "rows": rows,
            }
            write_results(asked.out, settings, found, resolve_device(asked.device))
    draw(rows, asked.out.with_suffix(".png"))
    print("| trials | warm over cold | 95 % | better in |")
    print("|---|---|---|---|")
    for row in found["summary"]:
        high = "∞" if row["high"] is None else f"{row['high']:.3f}"
        print(
            f"| {row['trials']} | {row['ratio']:.3f} | {row['low']:.3f} to {high} | "
            f"{row['better']} of {row['searches']} |"
        )


if __name__ == "__main__":
    main()
