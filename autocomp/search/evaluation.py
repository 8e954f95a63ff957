"""Measuring one plan as an assembled model, a rung at a time."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autocomp.core.errors import NumericalError
from autocomp.core.plan import Plan
from autocomp.evaluate.record import DataRead, Efficiency, Measurement, Metric, hardware
from autocomp.search.objectives import Objective
from autocomp.search.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Outcome:
    """What measuring a plan gave.

    Args:
        loss: The objective's metric over the units read.
        unit_loss: Loss of every unit that was read, in ladder order.
        complete: Whether the top rung was read.
        tokens: Tokens read.
        seconds: Wall time.
        stages: Wall seconds by stage: ``assemble`` and one ``rung <units>`` each.
        measurement: The record of it.
    """

    loss: float
    unit_loss: tuple[float, ...]
    complete: bool
    tokens: int
    seconds: float
    stages: dict[str, float]
    measurement: Measurement


def evaluate_plan(
    objective: Objective,
    bench: Workbench,
    plan: Plan,
    stop: Callable[[Sequence[float]], bool] = lambda losses: False,
) -> Outcome:
    """Assemble a plan and climb the ladder of an objective.

    Args:
        objective: What is measured.
        bench: The loaded model of the plan's variant.
        plan: The candidate.
        stop: Asked after every rung but the last with the loss of each unit so far; never stops
            when not given.

    Raises:
        NumericalError: If the loss of a unit is not finite.
    """
    started = time.perf_counter()
    stages: dict[str, float] = {}
    objective.prepare()
    bench.candidate.apply(plan, bench.operands)
    stages["assemble"] = time.perf_counter() - started
    losses: list[float] = []
    tokens = 0
    for count in objective.ladder:
        begun = time.perf_counter()
        found, read = objective.measure(bench, plan, len(losses), count)
        losses.extend(found)
        tokens += read
        stages[f"rung {count} {objective.unit}s"] = time.perf_counter() - begun
        if not all(map(math.isfinite, losses)):
            raise NumericalError(
                f"{objective.name} of plan {plan.digest[:12]} is not finite after {tokens} tokens."
            )
        if count < objective.ladder[-1] and stop(losses):
            break
    seconds = time.perf_counter() - started
    metric = objective.metric(losses)
    return Outcome(
        loss=metric.value,
        unit_loss=tuple(losses),
        complete=len(losses) == objective.ladder[-1],
        tokens=tokens,
        seconds=seconds,
        stages=stages,
        measurement=measured_on(
            bench,
            {objective.name: metric},
            objective.read(len(losses), tokens),
            seconds,
            floor_nats=objective.floor_nats,
        ),
    )


def measured_on(
    bench: Workbench,
    metrics: Mapping[str, Metric],
    data: DataRead,
    seconds: float,
    *,
    floor_nats: float | None = None,
    efficiency: Efficiency | None = None,
) -> Measurement:
    """Return the record of a measurement on the machine of a workbench.

    Args:
        bench: The workbench.
        metrics: What was measured, by name.
        data: What was read.
        seconds: Wall time.
        floor_nats: What was subtracted from every KL.
        efficiency: Size and operations of the model.
    """
    return Measurement(
        metrics=metrics,
        data=data,
        dtype=str(bench.dtype).removeprefix("torch."),
        device=bench.device.type,
        hardware=hardware(bench.device),
        seconds=seconds,
        floor_nats=floor_nats,
        efficiency=efficiency,
    )
