"""Predicted against measured time of decoding, over plans that the search could propose.

``python studies/latency-model/measure.py --model smollm2-135m --plans 20`` times the operations of
the model and fits its overhead, as ``autocomp bench`` does, under a device name of its own. It
then draws random plans, keeps those that spread evenly over the predicted range, and times them as
whole models in turns. It prints and writes the median error of the prediction, the rank
correlation, and the noise of the measurement itself: the difference of two timings of one plan.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocomp.core.plan import Plan
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost import Workload, cost_model
from autocomp.cost.bytes import is_bypassed
from autocomp.cost.ops import model_key
from autocomp.cost.times import DECODE, PREFILL, TimeTable
from autocomp.evaluate.bench import OpBench, applies, cases_of_model, conditions
from autocomp.evaluate.forms import Forms
from autocomp.evaluate.latency import BYPASS, COSTS, ModelBench
from autocomp.evaluate.timing import REPEATS, Timing
from autocomp.evaluate.winner import rank_correlation
from autocomp.models import LoadedModel, load
from autocomp.models.device import compute_dtype, resolve_device

SPECS = "rtn-w2g64,rtn-w3g64,rtn-w4g64-sym,rtn-w6g64,rtn-w8-sym"
DEVICE = "latency-model"
CANDIDATES = 600
MOST_DROPPED = 0.6


def random_plan(sketch: Sketch, specs: Sequence[LayerSpec], rng: np.random.Generator) -> Plan:
    """Return a plan with its own mixture of options and its own share of dropped sub-blocks."""
    options = [DENSE, *specs]
    weights = rng.dirichlet(np.full(len(options), 0.5))
    drop = rng.uniform(0, MOST_DROPPED) * rng.integers(0, 2)
    layers: dict[str, LayerSpec] = {}
    for site in sketch.sites:
        if site.kind == "subblock":
            layers[site.name] = BYPASS if rng.random() < drop else DENSE
        elif site.kind != "cache":
            chosen = options[rng.choice(len(options), p=weights)]
            fits = chosen == DENSE or applies(chosen, site.kind, site.shape)
            layers[site.name] = chosen if fits else DENSE
    plan = Plan(layers)
    gone = [name for name in layers if is_bypassed(sketch, plan, name)]
    return Plan(layers | dict.fromkeys(gone, DENSE))


def stratified(plans: Sequence[Plan], predicted: Sequence[float], count: int) -> list[int]:
    """Return the plans nearest to ``count`` evenly spaced predictions, each once, in order."""
    left, found = dict(enumerate(predicted)), []
    for target in np.linspace(min(predicted), max(predicted), count):
        nearest = min(left, key=lambda index: abs(left[index] - target))
        del left[nearest]
        found.append(nearest)
    return sorted(found, key=lambda index: predicted[index])


class Study:
    """One model on this machine.

    Args:
        asked: The settings of the command line.
        loaded: The model.
    """

    def __init__(self, asked: argparse.Namespace, loaded: LoadedModel) -> None:
        self.asked, self.loaded = asked, loaded
        self.device = resolve_device(asked.device)
        self.dtype = compute_dtype(asked.dtype, self.device)
        self.forms = Forms(loaded.sketch.dtype)
        self.specs = [LayerSpec.parse(token) for token in asked.specs.split(",")]
        self.work = Workload(asked.context, asked.batch, DEVICE, "measured")
        self.models = ModelBench(loaded, self.device, self.dtype, self.forms, asked.repeats)

    def measure_table(self) -> TimeTable:
        """Time operations and whole models into a table and save it."""
        sketch, phase = self.loaded.sketch, self.asked.phase
        table = TimeTable(DEVICE, conditions(self.device, self.dtype))
        ops = OpBench(self.device, self.dtype, self.forms, self.asked.repeats)
        for times in ops.run(cases_of_model(sketch, self.specs, self.work, phase)):
            table = table.with_times(times)
        overhead = self.models.overhead(self.specs, table.times, self.work, phase)
        table = table.with_overhead(model_key(sketch, self.work, phase), overhead)
        table.save()
        return table

    def chosen(self) -> list[tuple[Plan, float]]:
        """Return the plans to time, each with its predicted milliseconds, quickest first."""
        sketch = self.loaded.sketch
        model = cost_model(COSTS[self.asked.phase], sketch, self.work)
        rng = SeedTree(self.asked.seed).child("plans").numpy()
        drawn = (random_plan(sketch, self.specs, rng) for _ in range(CANDIDATES))
        plans = list({plan.digest: plan for plan in drawn}.values())
        predicted = [model.predict(plan) * model.tick for plan in plans]
        places = stratified(plans, predicted, min(self.asked.plans, len(plans)))
        return [(plans[place], predicted[place]) for place in places]

    def run(self) -> dict[str, Any]:
        """Return predictions, measurements and how far they agree."""
        table = self.measure_table()
        chosen = self.chosen()
        plans = [plan for plan, _ in chosen]
        twice = [plans[0], plans[len(plans) // 2], plans[-1]]
        timings = self.models.time([*plans, *twice], self.work, self.asked.phase)
        first = [timings[0], timings[len(plans) // 2], timings[len(plans) - 1]]
        rows = [
            self._row(plan, predicted, timing)
            for (plan, predicted), timing in zip(chosen, timings, strict=False)
        ]
        errors = [abs(row["predicted_ms"] / row["measured_ms"] - 1) for row in rows]
        again = [
            abs(a.seconds / b.seconds - 1)
            for a, b in zip(first, timings[len(plans) :], strict=True)
        ]
        agreement = rank_correlation(
            [row["predicted_ms"] for row in rows], [row["measured_ms"] for row in rows]
        )
        key = model_key(self.loaded.sketch, self.work, self.asked.phase)
        return {
            "settings": vars(self.asked) | {"out": None},
            "conditions": asdict(table.conditions),
            "overhead": asdict(table.overheads[key]),
            "median_error": float(np.median(errors)),
            "largest_error": max(errors),
            "noise": {
                "same_plan_twice": again,
                "median_half_iqr": float(np.median([timing.noise for timing in timings])),
            },
            "rank_correlation": None if agreement is None else asdict(agreement),
            "fastest_over_slowest": rows[0]["predicted_ms"] / rows[-1]["predicted_ms"],
            "rows": rows,
        }

    def _row(self, plan: Plan, predicted: float, timing: Timing) -> dict[str, Any]:
        sketch = self.loaded.sketch
        return {
            "plan": plan.digest[:16],
            "bypassed": sum(plan[site.name] != DENSE for site in sketch.subblocks()),
            "predicted_ms": predicted,
            "measured_ms": 1e3 * timing.seconds,
            "noise": timing.noise,
            "repeats": timing.repeats,
        }


def show(found: dict[str, Any]) -> None:
    """Print the table and the summary."""
    print("| plan | bypassed | predicted ms | measured ms | error | noise |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in found["rows"]:
        error = row["predicted_ms"] / row["measured_ms"] - 1
        print(
            f"| {row['plan']} | {row['bypassed']} | {row['predicted_ms']:.3f} | "
            f"{row['measured_ms']:.3f} | {error:+.1%} | {row['noise']:.1%} |"
        )
    noise, ranks = found["noise"], found["rank_correlation"]
    twice = ", ".join(f"{value:.1%}" for value in noise["same_plan_twice"])
    print(f"median error {found['median_error']:.1%}, largest {found['largest_error']:.1%}")
    print(f"noise: the same plan twice {twice}; half IQR {noise['median_half_iqr']:.1%}")
    print(f"fastest over slowest {found['fastest_over_slowest']:.2f}")
    print("rank correlation", "–" if ranks is None else f"{ranks['spearman']:.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--specs", default=SPECS, help="tokens, with commas")
    parser.add_argument("--phase", choices=(DECODE, PREFILL), default=DECODE)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    out = Path(__file__).parent / "results" / "latency-model.json"
    parser.add_argument("--out", type=Path, default=out)
    asked = parser.parse_args(arguments)
    torch.manual_seed(asked.seed)
    found = Study(asked, load(asked.model)).run()
    show(found)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=asked.out.parent, delete=False) as file:
        file.write(json.dumps(found, indent=1) + "\n")
    Path(file.name).replace(asked.out)


if __name__ == "__main__":
    main()
