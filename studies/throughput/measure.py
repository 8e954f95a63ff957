"""Tokens a second of our meter against a plain fp32 loop over whole logits, on a search's plans.

``python studies/throughput/measure.py`` measures, in turns, plans of three kinds: ``arbitrary``
ones, those that share the first half of their blocks with one measured before (``half``), and
those that differ from it in one site of a late block (``late``). The loop measures each of them
too.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from autocomp.cli.console import progress
from autocomp.cli.libraries import quiet_libraries
from autocomp.config import load_config
from autocomp.core.plan import Plan
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import LayerSpec
from autocomp.evaluate.body import plan_states
from autocomp.evaluate.record import hardware, versions
from autocomp.formats.base import Operands
from autocomp.layers.apply import Candidate
from autocomp.models import load
from autocomp.search.workbench import Workbench

OUT = Path(__file__).parent / "results" / "throughput.json"
LINEAR = tuple(map(LayerSpec.parse, ("rtn-w4g32", "rtn-w5g32", "rtn-w6g32", "rtn-w8g32")))
TABLE = tuple(map(LayerSpec.parse, ("dense", "rtn-w8g32")))
KINDS = ("arbitrary", "half", "late")
LATE_SHARE = 0.75


class Plans:
    """Plans of every kind, each once, all options of a site as likely."""

    def __init__(self, sketch: Sketch, seed: int) -> None:
        self._sketch = sketch
        self._random = random.Random(seed)
        self.start = self.next("arbitrary")

    def next(self, kind: str) -> Plan:
        """Return another plan of a kind."""
        sites = list(self._sketch.weights())
        if kind == "arbitrary":
            return Plan({site.name: self._option(site) for site in sites})
        count = self._sketch.num_layers
        if kind == "half":
            changed = [site for site in sites if site.block >= count // 2]
        else:
            late = [site for site in sites if site.block >= int(LATE_SHARE * count)]
            changed = [self._random.choice(late)]
        other = {site.name: self._option(site, self.start[site.name]) for site in changed}
        return Plan(dict(self.start.layers) | other)

    def _option(self, site: Site, without: LayerSpec | None = None) -> LayerSpec:
        options = LINEAR if site.kind == "linear" else TABLE
        return self._random.choice([option for option in options if option != without])


class PlainLoop:
    """KL from whole logits in fp32, the base's log-probabilities at hand."""

    def __init__(self, bench: Workbench) -> None:
        self._windows, self._batch = bench.search_windows, bench.batch_size
        self._model: PreTrainedModel = load(
            bench.config.model, device=str(bench.device), dtype=torch.float32
        ).model
        self._candidate = Candidate(self._model, bench.sketch)
        self._base = list(self._log_probabilities())

        @cache
        def fetch(site: str, spec: LayerSpec) -> Operands:
            weight, prepare = bench.compressed(site, spec).to(bench.device).operands()
            return Operands(weight, prepare)

        self._fetch = fetch

    def apply(self, plan: Plan) -> None:
        """Make the model compute what a plan says."""
        self._candidate.apply(plan, self._fetch)

    def _log_probabilities(self) -> Iterator[Tensor]:
        """Yield (windows, length − 1, vocab) fp32 of a pass."""
        for ids in self._windows.split(self._batch):
            with torch.no_grad():
                logits = self._model(input_ids=ids.to(self._model.device), use_cache=False).logits
            yield torch.log_softmax(logits[:, :-1], dim=-1)

    def kl_nats(self) -> list[float]:
        """Return the KL of each window, nats a token."""
        found: list[float] = []
        for base, mine in zip(self._base, self._log_probabilities(), strict=True):
            terms = torch.nn.functional.kl_div(mine, base, reduction="none", log_target=True)
            found += terms.sum(dim=-1).mean(dim=-1).tolist()
        return found


class Meter:
    """What a search does."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._meter = bench.search_meter
        self.floor_nats = self._meter.floor_nats

    def apply(self, plan: Plan) -> None:
        """Make the model compute what a plan says."""
        self._plan = plan
        self._bench.candidate.apply(plan, self._bench.operands)

    def kl_nats(self) -> list[float]:
        """Return the KL of each window, nats a token."""
        scores = self._meter.measure(
            self._bench.model,
            range(len(self._bench.search_windows)),
            head_token=self._bench.head_token(self._plan.layers),
            state=plan_states(self._bench.sketch, self._plan),
        )
        return list(scores.kl_nats)


def timed(measured: PlainLoop | Meter, plan: Plan) -> tuple[float, float, list[float]]:
    """Return the seconds of assembling and of measuring a plan, and its KL of each window."""
    begun = time.perf_counter()
    measured.apply(plan)
    assembled = time.perf_counter()
    kl = measured.kl_nats()
    return assembled - begun, time.perf_counter() - assembled, kl


def turn(plain: PlainLoop, meter: Meter, plan: Plan, kind: str) -> dict[str, Any]:
    """Measure a plan by both."""
    _, plain_s, expected = timed(plain, plan)
    assemble_s, meter_s, found = timed(meter, plan)
    mean, wanted = statistics.fmean(found), statistics.fmean(expected)
    return {
        "kind": kind,
        "plan": plan.digest,
        "plain_s": plain_s,
        "meter_s": meter_s,
        "assemble_s": assemble_s,
        "plain_kl_nats": wanted,
        "kl_difference_nats": mean - wanted,
    }


def summary(turns: list[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """Return a row a kind: medians over the turns, and the largest difference of KL."""
    rows = []
    for kind in KINDS:
        mine = [turn for turn in turns if turn["kind"] == kind]
        rows.append(
            {
                "kind": kind,
                "turns": len(mine),
                "tokens_per_s": tokens / statistics.median(t["meter_s"] for t in mine),
                "plain_tokens_per_s": tokens / statistics.median(t["plain_s"] for t in mine),
                "ratio": statistics.median(t["plain_s"] / t["meter_s"] for t in mine),
                "assemble_s": statistics.median(t["assemble_s"] for t in mine),
                "max_kl_difference_nats": max(abs(t["kl_difference_nats"]) for t in mine),
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure plans in turns and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--corpus", default="pydoc")
    parser.add_argument("--tokens", type=int, default=4096, help="that a plan is measured on")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5, help="plans of every kind")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    quiet_libraries()
    settings = {
        "model": asked.model,
        "data.corpus": asked.corpus,
        "data.window": asked.window,
        "data.rungs": [asked.tokens],
    }
    bench = Workbench(load_config(None, settings))
    plain, meter, plans = PlainLoop(bench), Meter(bench), Plans(bench.sketch, seed=0)
    turns = []
    with progress(quiet=False) as shown:
        for table in TABLE:  # what the base says of each head is computed once a study
            ends = {s.name: table for s in bench.sketch.weights() if s.kind != "linear"}
            timed(meter, Plan(ends))
        timed(meter, plans.start)
        for _ in range(asked.turns):
            for kind in KINDS:
                turns.append(turn(plain, meter, plans.next(kind), kind))
                shown.log(json.dumps(turns[-1]))
    rows = summary(turns, bench.search_windows.numel())
    described = {
        "model": Path(asked.model).name,
        "corpus": Path(asked.corpus).name,
        "windows": list(bench.search_windows.shape),
        "batch_windows": bench.batch_size,
        "linears": [spec.token() for spec in LINEAR],
        "ends": [spec.token() for spec in TABLE],
        "dtype": str(bench.dtype).removeprefix("torch."),
        "hardware": hardware(bench.device),
        "floor_nats": meter.floor_nats,
    }
    record = {"settings": described, "versions": versions(), "rows": rows, "turns": turns}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("| plans | plain loop, tokens/s | meter, tokens/s | ratio | largest difference of KL |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['kind']} | {row['plain_tokens_per_s']:.0f} | {row['tokens_per_s']:.0f} | "
            f"{row['ratio']:.2f} | {row['max_kl_difference_nats']:.1e} |"
        )


if __name__ == "__main__":
    main()
