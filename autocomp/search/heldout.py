"""What is reported of a finished plan: measured from its folder, as a user would load it."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from autocomp.config import StudyConfig
from autocomp.core.metric import PERPLEXITY
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.cost import Workload, device_names
from autocomp.evaluate.efficiency import efficiency_of_path
from autocomp.evaluate.record import Measurement
from autocomp.evaluate.summary import data_read, divergence_metrics
from autocomp.layers.native import WEIGHTS_FILE, load
from autocomp.search.evaluation import measured_on
from autocomp.search.objectives import Objective
from autocomp.search.setup import workload_of
from autocomp.search.workbench import Workbench


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An artefact measured from its file on what no choice has read.

    Args:
        metric: Name of the objective.
        unit_loss: The objective of each held-out unit; of a perplexity its cross entropy.
        weight_bytes: Size of the weight file on disk.
        measurements: Of the held-out text, then, where it is something else, of the objective.
    """

    metric: str
    unit_loss: tuple[float, ...]
    weight_bytes: int
    measurements: tuple[Measurement, ...]

    def fields(self) -> dict[str, Any]:
        """Return the fields of a :class:`~autocomp.search.records.FinishedRecord`."""
        text, loss = self.measurements[0].metrics, self.measurements[-1].metrics[self.metric]
        return {
            "heldout_kl_nats": text["kl_nats"].value,
            "heldout_se": _error(text["kl_nats"].standard_error),
            "perplexity": text["perplexity"].value,
            "base_perplexity": text["base_perplexity"].value,
            "weight_bytes": self.weight_bytes,
            "heldout_loss": loss.value,
            "heldout_loss_se": _error(loss.standard_error),
            "metric": self.metric,
            "unit_loss": self.unit_loss,
            "measurements": tuple(found.to_json() for found in self.measurements),
        }


def _workload(config: StudyConfig) -> Workload | None:
    """Return what times are of; ``None`` for a device that no limit needs and nobody knows."""
    return workload_of(config) if config.budget.device in device_names() else None


def _error(value: float | None) -> float:
    return math.nan if value is None else value


def measure_artefact(
    objective: Objective, bench: Workbench, folder: Path, plan: Plan, progress: Progress
) -> HeldOut:
    """Load an artefact from its folder and measure it on the held-out text and examples.

    Args:
        objective: What the study minimises.
        bench: The loaded model of the plan's variant.
        folder: The artefact.
        plan: What it was made of.
        progress: Listener.
    """
    text = bench.windows("heldout", bench.config.data.heldout_tokens)
    meter = bench.heldout_meter
    model = load(folder, str(bench.device), bench.dtype, memory="decoded")
    begun = time.perf_counter()
    progress.start("measure held-out", text.tokens, "token")
    scores = meter.measure(
        model,
        range(len(text.input_ids)),
        head_token=bench.head_token(plan.layers),
        advance=progress.advance,
    )
    progress.finish()
    read = data_read(text)
    base_nll = meter.reference.nll_nats()
    found = measured_on(
        bench,
        divergence_metrics(scores, base_nll, text.text_bytes, read),
        read,
        time.perf_counter() - begun,
        floor_nats=meter.floor_nats,
        efficiency=efficiency_of_path(
            str(folder),
            bench.config.model,
            context=bench.config.budget.context,
            workload=_workload(bench.config),
        ),
    )
    size = (folder / WEIGHTS_FILE).stat().st_size
    own = _own(objective, bench, model, progress)
    if own is None:
        units = scores.nll_nats if objective.name == PERPLEXITY else scores.kl_nats
        return HeldOut(objective.name, units, size, (found,))
    return HeldOut(objective.name, own[0], size, (found, own[1]))


def _own(
    objective: Objective, bench: Workbench, model: PreTrainedModel, progress: Progress
) -> tuple[tuple[float, ...], Measurement] | None:
    """Return the objective of each held-out unit and its record, where it is not of that text."""
    begun = time.perf_counter()
    found = objective.measure_heldout(model, progress)
    if found is None:
        return None
    losses, read = found
    seconds = time.perf_counter() - begun
    metrics = {objective.name: objective.metric(losses)}
    return tuple(losses), measured_on(bench, metrics, read, seconds)
