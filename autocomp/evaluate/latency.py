"""Whole models timed, and the overhead that their operations do not explain.

A model is made of random weights in the formats of a plan, written as a native folder and loaded
as a user loads one.
"""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from autocomp.core.cost import DECODE_MS, MIXED, PREFILL_MS
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost import cost_model
from autocomp.cost.bytes import is_bypassed
from autocomp.cost.models import Workload
from autocomp.cost.ops import is_attention, plan_ops
from autocomp.cost.overhead import ModelRun, fit_overhead
from autocomp.cost.times import DECODE, PREFILL, OpKey, OpTime, Overhead
from autocomp.evaluate.forms import Forms
from autocomp.evaluate.timing import REPEATS, WARM_UP, Call, Timing, interleaved
from autocomp.layers.native import load, native_sketch, read_plan, write_native
from autocomp.models import LoadedModel
from autocomp.models.arguments import cache_argument

BYPASS = LayerSpec.parse("bypass")
COSTS = {DECODE: DECODE_MS, PREFILL: PREFILL_MS}
"""Name of the time of each phase."""


@dataclass(frozen=True)
class ModelBench:
    """Times whole models of one architecture.

    Args:
        loaded: The model that gives config, norms and biases.
        device: Where.
        dtype: Compute dtype.
        forms: Random weights.
        repeats: Samples a model.
    """

    loaded: LoadedModel
    device: torch.device
    dtype: torch.dtype
    forms: Forms
    repeats: int = REPEATS

    @property
    def sketch(self) -> Sketch:
        """The architecture."""
        return self.loaded.sketch

    @contextmanager
    def folder(self, plan: Plan) -> Iterator[Path]:
        """Yield a native folder of a plan with random weights, which goes with the context."""
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            write_native(
                folder,
                plan=plan,
                sketch=self.sketch,
                weights={
                    site.name: self.forms.weight(plan[site.name], site.shape)
                    for site in self.sketch.weights()
                    if not is_bypassed(self.sketch, plan, site.name)
                },
                model=self.loaded.model,
            )
            yield folder

    def model(self, plan: Plan) -> PreTrainedModel:
        """Return a plan's model with random weights, loaded from its file."""
        with self.folder(plan) as folder:
            return load(folder, device=str(self.device), dtype=self.dtype)

    def time(self, plans: Sequence[Plan], workload: Workload, phase: str) -> list[Timing]:
        """Return the times of a step of some plans, measured in turns, all in memory at once.

        Args:
            plans: What to time.
            workload: Context and batch.
            phase: ``decode`` or ``prefill``.
        """
        steps = [step(self.model(plan), workload, phase, self.repeats) for plan in plans]
        self.forms.forget()
        return interleaved([[call] for call in steps], self.device, repeats=self.repeats)

    def overhead(
        self,
        specs: Sequence[LayerSpec],
        times: Mapping[OpKey, OpTime],
        workload: Workload,
        phase: str,
    ) -> Overhead:
        """Return the overhead of the model, fitted on :func:`fit_plans`.

        Args:
            specs: Of linears, measured ones.
            times: Of all their operations.
            workload: Context and batch.
            phase: ``decode`` or ``prefill``.
        """
        plans = fit_plans(self.sketch, specs)
        timings = self.time(plans, workload, phase)
        return fit_overhead(
            [
                run_of(self.sketch, plan, times, workload, phase, timing.seconds)
                for plan, timing in zip(plans, timings, strict=True)
            ]
        )


@dataclass(frozen=True, slots=True)
class FolderTime:
    """How long a step of a stored model takes, beside what was predicted.

    Args:
        phase: ``decode`` or ``prefill``.
        batch: Sequences.
        context: Tokens a sequence.
        median_ms: Measured, milliseconds.
        noise: Half the interquartile range over the median.
        repeats: Samples.
        predicted_ms: From the device's table; ``None`` where it has none.
        source: Where the prediction comes from; empty without one.
    """

    phase: str
    batch: int
    context: int
    median_ms: float
    noise: float
    repeats: int
    predicted_ms: float | None
    source: str


def time_folder(
    folder: Path,
    workload: Workload,
    phase: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    repeats: int = REPEATS,
) -> FolderTime:
    """Load a native folder as a user does and time its step.

    Args:
        folder: The folder.
        workload: Context, batch and the device whose table predicts.
        phase: ``decode`` or ``prefill``.
        device: Where.
        dtype: Compute dtype.
        repeats: Samples.
    """
    model = load(folder, device=str(device), dtype=dtype)
    calls = [step(model, workload, phase, repeats)]
    (timing,) = interleaved([calls], device, repeats=repeats)
    predicted, source = None, ""
    try:
        found = cost_model(COSTS[phase], native_sketch(folder), replace(workload, times=MIXED))
        plan = read_plan(folder)
        predicted, source = found.predict(plan) * found.tick, found.source_of(plan)
    except ConfigError:  # nothing was measured on this device
        pass
    return FolderTime(
        phase=phase,
        batch=workload.batch,
        context=workload.context,
        median_ms=1e3 * timing.seconds,
        noise=timing.noise,
        repeats=timing.repeats,
        predicted_ms=predicted,
        source=source,
    )


def run_of(
    sketch: Sketch,
    plan: Plan,
    times: Mapping[OpKey, OpTime],
    workload: Workload,
    phase: str,
    seconds: float,
) -> ModelRun:
    """Return a timed model beside the times of its operations."""
    ops, attentions, mlps = plan_ops(sketch, plan, workload, phase)
    return ModelRun(sum(times[key].seconds for key in ops), attentions, mlps, seconds)


def fit_plans(sketch: Sketch, specs: Sequence[LayerSpec]) -> list[Plan]:
    """Return plans that tell the terms of an overhead apart.

    Dense and the first and last spec for all linears, then without every other attention, without
    every other MLP, and without a block's worth of both, each with the dense weights and the last
    spec.

    Args:
        sketch: The model.
        specs: Of linears; may be empty.
    """
    linears = [site.name for site in sketch.sites if site.kind == "linear"]
    attentions = [s.name for s in sketch.subblocks() if is_attention(sketch, s.name)]
    mlps = [s.name for s in sketch.subblocks() if not is_attention(sketch, s.name)]
    chosen = list(dict.fromkeys((DENSE, *specs[:1], *specs[-1:])))
    uniform = [dict.fromkeys(linears, spec) for spec in chosen]
    dropped = [attentions[::2], mlps[::2], attentions[:1] + mlps[:1]]
    shorter = [
        layers | dict.fromkeys(gone, BYPASS)
        for layers, gone in itertools.product([uniform[0], uniform[-1]][: len(chosen)], dropped)
    ]
    return [_canonical(sketch, layers) for layers in (*uniform, *shorter)]


def _canonical(sketch: Sketch, layers: Mapping[str, LayerSpec]) -> Plan:
    """Return a plan in which what a bypass drops is dense."""
    plan = Plan(dict(layers))
    gone = [name for name in layers if is_bypassed(sketch, plan, name)]
    return Plan(dict(layers) | dict.fromkeys(gone, DENSE))


def step(model: PreTrainedModel, workload: Workload, phase: str, repeats: int = REPEATS) -> Call:
    """Return one step of a model: all of the context, or one more token of every sequence.

    The cache of a decoding model grows by a token a call; it starts as much below the context as
    brings the middle of the timed calls to it.

    Args:
        model: In evaluation mode.
        workload: Context and batch.
        phase: ``decode`` or ``prefill``.
        repeats: Timed calls that are to come.
    """
    shape = (workload.batch, workload.context)
    tokens = torch.randint(model.config.vocab_size, shape, device=model.device)

    def forward(ids: torch.Tensor, cache: DynamicCache) -> object:
        options: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1}
        return model(input_ids=ids, **{cache_argument(model): cache}, **options)

    if phase == PREFILL:
        return lambda: forward(tokens, DynamicCache(config=model.config))
    held = DynamicCache(config=model.config)
    start = max(1, workload.context - 1 - WARM_UP - repeats // 2)
    with torch.no_grad():
        forward(tokens[:, :start], held)
    return lambda: forward(tokens[:, -1:], held)
