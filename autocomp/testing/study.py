"""A search without a model, and what a study must hold whoever fills it and however it dies.

:func:`run_fake` has a driver measure proposals whose values are made up. Both are pure functions,
so a test can kill it anywhere and start it again. The ``check_…`` functions raise
``AssertionError`` on a breach.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from autocomp.config import SearchConfig
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress, Silent
from autocomp.core.registry import DRIVERS, SPACES, load_object
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import Sketch
from autocomp.search.clock import Clock
from autocomp.search.drivers.job import Job, Report
from autocomp.search.drivers.queue import TrialQueue
from autocomp.search.records import Measured, NewTrial, TrialRecord
from autocomp.search.study import Study
from autocomp.testing.spaces import toy_sketch

OptionSpace = load_object("autocomp.search_spaces._options:OptionSpace")
layout = load_object("autocomp.methods.compose:layout")

LIMIT_BYTES = 80_000
RUNGS = (1024, 4096)
REDRAWS = 50


def fake_space() -> Any:
    """Return a space of one block: three options a linear, two for the embedding, bypasses."""
    sketch = toy_sketch(blocks=1)
    lists = SPACES["bits"].candidates(
        sketch,
        linear=("gptq-w3g64", "gptq-w4g64", "gptq-w8g64"),
        embedding=("rtn-w4g64-mse", "dense"),
        bypass=True,
    )
    return OptionSpace(sketch, lists)


def fake_bytes(sketch: Sketch, plan: Plan) -> int:
    """Return the tensor bytes of a plan."""
    return sum(
        layout(plan[site.name], site.shape, sketch.dtype).nbytes for site in sketch.weights()
    )


def fake_kl(sketch: Sketch, plan: Plan) -> float:
    """Return a made-up KL in nats: it falls with the bytes; one plan in sixteen gives NaN."""
    if plan.digest.startswith("0"):
        return math.nan
    noise = int(plan.digest[:8], 16) / 2**32
    return math.exp(-fake_bytes(sketch, plan) / 30_000) * (1 + 0.3 * noise)


def fake_measure(sketch: Sketch, plan: Plan) -> tuple[Measured, bool]:
    """Return a measurement and whether it reached the top rung; one plan in sixteen does not."""
    complete = plan.digest[1] != "0"
    kl = fake_kl(sketch, plan)
    return Measured(kl, (0.9 * kl, 1.1 * kl), RUNGS[complete]), complete


def fake_proposal(space: Any, seed: int, index: int, told: Sequence[TrialRecord]) -> NewTrial:
    """Return a random change of the best plan told before, as a function of seed and index."""
    before = [record for record in told if record.logical < index]
    known = {record.digest for record in before}
    measured = [record for record in before if record.state == "COMPLETE"]
    best = min(measured, key=lambda record: (record.loss, record.logical), default=None)
    ranges = space.distributions()
    rng = SeedTree(seed).child("trial", index).numpy()
    for _ in range(REDRAWS):
        share = 1.0 if best is None else 0.4
        drawn = {name: int(rng.integers(0, r.high + 1)) for name, r in ranges.items()}
        kept = {} if best is None else best.params
        params = drawn | {name: kept[name] for name in kept if rng.random() > share}
        plan = space.decode(params)
        if plan.digest not in known:
            break
    size = fake_bytes(space.sketch, plan)
    return NewTrial(
        logical=index,
        params=space.encode(plan),
        distributions=ranges,
        plan=plan,
        origin="uniform" if best is None else "mutation",
        family="quantized",
        weight_bytes=size,
        constraints={"weight_bytes": float(size - LIMIT_BYTES)},
    )


class FakeSource:
    """The fake search as a source of trials.

    Args:
        space: The space.
        seed: Seed of the proposals.
    """

    def __init__(self, space: Any, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, index: int, told: Sequence[TrialRecord]) -> NewTrial:
        """Return the proposal of a logical trial."""
        return fake_proposal(self._space, self._seed, index, told)

    def gate(self, trial: TrialRecord, before: Sequence[TrialRecord]) -> None:
        """Return none."""

    def out_of_time(self) -> bool:
        """Return that there is time."""
        return False


class FakeEvaluator:
    """Measures jobs without a model, in any process.

    Args:
        pause: Seconds that an evaluation takes.
    """

    def __init__(self, pause: float = 0.0) -> None:
        self._pause = pause
        self._sketch = fake_space().sketch

    def __call__(self, job: Job, alive: Callable[[], object]) -> Report:
        """Return the made-up loss of a job."""
        time.sleep(self._pause)
        alive()
        return Report(*fake_measure(self._sketch, job.plan))


def run_fake(
    study: Study,
    seed: int,
    trials: int,
    pause: float = 0.0,
    config: SearchConfig | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill a study up to a number of trials, the abandoned ones first.

    Args:
        study: The study, new or to be resumed.
        seed: Seed of the proposals.
        trials: Total number of logical trials.
        pause: Seconds that an evaluation takes.
        config: What names the driver and its workers; inline when not given.
        progress: Listener.
    """
    space, chosen = fake_space(), config or SearchConfig()
    study.set_lists(space.lists)
    queue = TrialQueue(study, FakeSource(space, seed), trials, progress or Silent(), Clock())
    driver = DRIVERS[chosen.driver_name](chosen)
    driver.run(queue, FakeEvaluator(pause), partial(FakeEvaluator, pause))


def outcome(study: Study) -> list[tuple[Any, ...]]:
    """Return all that must not depend on interruptions: plans and values in logical order."""
    return [
        (r.logical, r.number, r.state, r.digest, r.loss, r.unit_loss, r.tokens, r.reason)
        for r in study.records()
    ]


def check_study(study: Study, trials: int) -> None:
    """A study that :func:`run_fake` filled is complete, consistent, and agrees with Optuna."""
    records = study.records()
    sketch = fake_space().sketch
    assert [record.logical for record in records] == list(range(trials))
    alive = [record.digest for record in records if record.state != "FAIL"]
    assert len(set(alive)) == len(alive), "no plan is told twice"
    for record in records:
        assert record.plan.digest == record.digest
        assert record.state in ("COMPLETE", "PRUNED", "FAIL"), record
        assert set(record.constraints) == {"weight_bytes", "fidelity"}
        assert record.constraints["fidelity"] == (record.state != "COMPLETE")
        assert record.within_limits == (fake_bytes(sketch, record.plan) <= LIMIT_BYTES)
        if record.loss is not None:
            assert math.isclose(record.loss, fake_kl(sketch, record.plan))
        if record.state != "COMPLETE":
            assert record.reason, record
    front = [point.number for point in study.front().points]
    assert sorted(front) == sorted(trial.number for trial in study.optuna.best_trials)
