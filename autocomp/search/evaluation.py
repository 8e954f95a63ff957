"""Measuring one plan as an assembled model, a rung at a time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autocomp.core.errors import NumericalError
from autocomp.core.plan import Plan
from autocomp.search.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Outcome:
    """What measuring a plan gave.

    Args:
        window_kl: KL of every window that was read, nats a token, in ladder order.
        complete: Whether the top rung was read.
        tokens: Text read, tokens.
        seconds: Wall time.
        stages: Wall seconds by stage: ``assemble`` and one ``rung <tokens>`` each.
    """

    window_kl: tuple[float, ...]
    complete: bool
    tokens: int
    seconds: float
    stages: dict[str, float]

    @property
    def kl_nats(self) -> float:
        """Mean KL over the windows read, nats a token."""
        return math.fsum(self.window_kl) / len(self.window_kl)


def evaluate_plan(
    bench: Workbench, plan: Plan, stop: Callable[[Sequence[float]], bool]
) -> Outcome:
    """Assemble a plan and climb the ladder.

    Args:
        bench: The loaded base model.
        plan: The candidate.
        stop: Asked after every rung but the last with the KL of each window so far.

    Raises:
        NumericalError: If a window's KL is not finite.
    """
    started = time.perf_counter()
    stages: dict[str, float] = {}
    meter = bench.search_meter
    bench.candidate.apply(plan, bench.operands)
    stages["assemble"] = time.perf_counter() - started
    token = bench.head_token(plan.layers)
    kl: list[float] = []
    tokens = 0
    for count in bench.ladder.windows:
        begun = time.perf_counter()
        scores = meter.measure(bench.model, range(len(kl), count), head_token=token)
        kl.extend(scores.kl_nats)
        tokens += len(scores.kl_nats) * bench.ladder.length
        stages[f"rung {count * bench.ladder.length}"] = time.perf_counter() - begun
        if not all(map(math.isfinite, kl)):
            raise NumericalError(
                f"the KL of plan {plan.digest[:12]} is not finite after {tokens} tokens."
            )
        if count < bench.ladder.full and stop(kl):
            break
    return Outcome(
        window_kl=tuple(kl),
        complete=len(kl) == bench.ladder.full,
        tokens=tokens,
        seconds=time.perf_counter() - started,
        stages=stages,
    )
