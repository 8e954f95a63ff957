"""Measuring a job on the models of a process, whichever it is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from autocomp.config import StudyConfig
from autocomp.core.errors import NumericalError
from autocomp.core.progress import Silent
from autocomp.search.clock import Clock
from autocomp.search.drivers.job import Job, Report
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.records import Measured
from autocomp.search.study import Study
from autocomp.search.variants import Variants


class ModelEvaluator:
    """Measures plans with the models that this process has loaded.

    Args:
        variants: The models.
    """

    def __init__(self, variants: Variants) -> None:
        self._variants = variants

    def __call__(self, job: Job, alive: Callable[[], object]) -> Report:
        """Return what came of a job; a loss that is not finite fails it.

        Args:
            job: What to measure.
            alive: Called after every rung but the last.
        """
        plan = job.plan
        bench = self._variants.bench(plan.variant)

        def stop(losses: Sequence[float]) -> bool:
            alive()
            return job.gate is not None and job.gate.stops(losses)

        try:
            outcome = evaluate_plan(self._variants.objective, bench, plan, stop)
        except NumericalError as error:
            return Report(None, reason=str(error))
        measured = Measured(
            loss=outcome.loss,
            unit_loss=outcome.unit_loss,
            tokens=outcome.tokens,
            seconds=outcome.seconds,
            measurement=outcome.measurement.to_json(),
        )
        return Report(measured, outcome.complete, stages=outcome.stages)


def other_process(config: StudyConfig, facts: Mapping[str, Any]) -> ModelEvaluator:
    """Return what measures in a process that has loaded nothing and knows no study.

    It checks its model, text and variants against a copy of the study's facts in memory; what it
    writes there is lost.

    Args:
        config: The study's configuration.
        facts: The study's attributes.

    Raises:
        ConfigError: When measuring, if its files are not those that the study was made with.
    """
    copied = optuna.create_study(directions=["minimize", "minimize"])
    for name, value in facts.items():
        copied.set_user_attr(name, value)
    if config.device.startswith("cuda"):  # a worker sees its own GPU only
        config = config.model_copy(update={"device": "cuda"})
    return ModelEvaluator(Variants(config, Study(copied, Path()), Silent(), Clock()))
