"""Two one-thread workers of Ray against one one-thread inline search: how fast, and how equal.

``python studies/ray/measure.py`` searches twice a seed, from one layer store: ``inline`` on one
thread, then ``ray`` with two workers of one thread each. Scores, compressed layers and the base's
distributions are not part of the time; starting Ray and loading the models of its workers is, and
is stated apart.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.core.progress import Progress
from autocomp.evaluate.record import hardware, versions
from autocomp.models.device import resolve_device
from autocomp.search.front import Front, FrontPoint
from autocomp.search.records import TrialRecord
from autocomp.search.run import Search
from autocomp.search.study import Study

OUT = Path(__file__).parent / "results" / "ray.json"
WAYS = {"inline": 1, "ray": 2}
ENQUEUED = ("uniform", "knapsack:score")  # what no measurement has a say in


def searched(asked: argparse.Namespace, way: str, seed: int, shown: Progress) -> dict[str, Any]:
    """Search one way; return times, tokens and trials."""
    settings = {
        "model": asked.model,
        "seed": seed,
        "device": "cpu",
        "data.corpus": asked.corpus,
        "data.window": asked.window,
        "data.calibration_tokens": asked.calibration,
        "data.rungs": [asked.tokens // 4, asked.tokens],
        "budget.max_bytes": asked.max_bytes,
        "search.trials": asked.trials,
        "search.driver": way,
        "search.workers": WAYS[way],
        "search.resources.cpus": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        search = Search(load_config(None, settings), Path(folder), None, shown)
        contexts = search.contexts()
        search.variants.objective.prepare()
        begun = time.time()
        search.run_trials(contexts)
        seconds = time.time() - begun
        records = search.study.records()
        measured = [record for record in records if record.loss is not None]
        first_told, first_tokens = earliest(search.study)
    tokens, first = sum(record.tokens for record in measured), first_told - begun
    return {
        "way": way,
        "seed": seed,
        "seconds": seconds,
        "first_told_s": first,
        "trials": len(measured),
        "tokens": tokens,
        "tokens_per_s": (tokens - first_tokens) / (seconds - first),
        "plans": {record.digest: described(record) for record in measured},
        "front": enqueued_front(records),
    }


def earliest(study: Study) -> tuple[float, int]:
    """Return when the first measured trial was told, Unix time, and how many tokens it read."""
    ends = [
        (trial.datetime_complete.timestamp(), trial.user_attrs["tokens"])
        for trial in study.optuna.trials
        if trial.datetime_complete is not None and "tokens" in trial.user_attrs
    ]
    return min(ends)


def described(record: TrialRecord) -> dict[str, Any]:
    """Return what two searches are compared by."""
    return {"origin": record.origin, "tokens": record.tokens, "loss": record.loss}


def enqueued_front(records: Sequence[TrialRecord]) -> list[str]:
    """Return the plans on the front of the trials that no measurement has a say in."""
    chosen = [r for r in records if r.origin in ENQUEUED and r.feasible]
    points = (FrontPoint(r.number, (r.loss, float(r.weight_bytes))) for r in chosen if r.loss)
    digests = {record.number: record.digest for record in chosen}
    return [digests[point.number] for point in Front.from_points(points).points]


def compared(inline: dict[str, Any], ray: dict[str, Any]) -> dict[str, Any]:
    """Return how two searches of one seed differ."""
    both = inline["plans"].keys() & ray["plans"].keys()
    pairs = [(inline["plans"][digest], ray["plans"][digest]) for digest in both]
    alike = [(a, b) for a, b in pairs if a["tokens"] == b["tokens"]]
    return {
        "seed": inline["seed"],
        "speedup": ray["tokens_per_s"] / inline["tokens_per_s"],
        "speedup_with_start": (ray["tokens"] / ray["seconds"])
        / (inline["tokens"] / inline["seconds"]),
        "plans_of_both": len(alike),
        "max_loss_difference": max((abs(a["loss"] - b["loss"]) for a, b in alike), default=0.0),
        "enqueued_front": len(inline["front"]),
        "enqueued_front_equal": inline["front"] == ray["front"],
    }


def main(arguments: list[str] | None = None) -> None:
    """Search both ways for every seed and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096, help="of the top rung")
    parser.add_argument("--calibration", type=int, default=16384, help="tokens")
    parser.add_argument("--max-bytes", default="80MB")
    parser.add_argument("--trials", type=int, default=32, help="a search")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)  # also of what is common to both
    searches, rows = [], []
    with progress(quiet=False) as shown:
        for seed in range(asked.seeds):
            pair = [searched(asked, way, seed, shown) for way in WAYS]
            searches += pair
            rows.append(compared(*pair))
            shown.log(json.dumps(rows[-1]))
    described_run = {
        name: value if name != "model" else Path(value).name
        for name, value in vars(asked).items()
        if name != "out"
    } | {"hardware": hardware(resolve_device("cpu")), "workers": WAYS, "threads_a_worker": 1}
    record = {
        "settings": described_run,
        "versions": versions(),
        "rows": rows,
        "searches": searches,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("| seed | tokens/s, ray over inline | with start | largest difference | front equal |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['seed']} | {row['speedup']:.2f} | {row['speedup_with_start']:.2f} | "
            f"{row['max_loss_difference']:.1e} | {row['enqueued_front_equal']} |"
        )
    median = statistics.median(row["speedup"] for row in rows)
    print(f"\nMedian: {median:.2f} times as many tokens a second.")


if __name__ == "__main__":
    main()
