"""Why a layer got its bits: a plan layer by layer, with the marginal cost of every alternative."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocomp.core.cost import PEAK_MEMORY_BYTES, WEIGHT_BYTES
from autocomp.core.errors import ConfigError
from autocomp.core.metric import KL
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import site_bytes, weight_bytes
from autocomp.search.correction import Correction
from autocomp.search.knapsack import Problem
from autocomp.search.records import TrialRecord
from autocomp.search.reprice import finished_efficiency
from autocomp.search.run import load_study_config
from autocomp.search.samplers.outlook import correction_of
from autocomp.search.setup import Setup
from autocomp.search.stored import first_context, stored_context, stored_setup
from autocomp.search.study import Study

CHANGES = {
    "factor": "rank",
    "residual": "rank",
    "mask": "sparsity",
    "refinement": "sparsity",
    "activation": "activations",
    "cache": "cache",
    "input": "input",
    "structure": "bypass",
}
"""What an alternative changes, by the first slot in which it differs; else its bits."""

KINDS = ("bits", *dict.fromkeys(CHANGES.values()))


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another option of a site.

    Args:
        token: Its spec.
        delta_bytes: Bytes more (or fewer, negative) than the chosen option.
        delta_loss: Predicted change of the loss, corrected by what the study measured.
        kind: What it changes, one of ``KINDS``.
    """

    token: str
    delta_bytes: int
    delta_loss: float
    kind: str = "bits"

    @property
    def price(self) -> float:
        """Loss that a megabyte spent takes off, or a megabyte saved adds."""
        return -self.delta_loss / (self.delta_bytes / 1e6) if self.delta_bytes else 0.0


def kind_of_change(chosen: LayerSpec, other: LayerSpec) -> str:
    """Return what moving from one option to another changes, one of ``KINDS``.

    ``rank`` where the factors or the low-rank correction differ, else ``sparsity`` where the mask
    does, else what else is not the quantizer, else ``bits``. So an option that is sparse and has
    other bits too prices sparsity.
    """
    changed = (
        kind for slot, kind in CHANGES.items() if getattr(chosen, slot) != getattr(other, slot)
    )
    return next(changed, "bits")


@dataclass(frozen=True, slots=True)
class Margin:
    """The next steps of one kind from the chosen option.

    Args:
        cheaper: The next smaller option; ``None`` where there is none.
        dearer: The next larger option; ``None`` where there is none.
    """

    cheaper: Alternative | None
    dearer: Alternative | None


def worthwhile(options: Sequence[Alternative]) -> list[Alternative]:
    """Return what neither another option nor the chosen one beats in bytes and loss, by bytes."""
    points = [(option.delta_bytes, option.delta_loss) for option in options] + [(0, 0.0)]

    def beaten(option: Alternative) -> bool:
        mine = (option.delta_bytes, option.delta_loss)
        return any(
            size <= mine[0] and loss <= mine[1] and (size, loss) != mine for size, loss in points
        )

    kept = [option for option in options if not beaten(option)]
    return sorted(kept, key=lambda option: option.delta_bytes)


def margins(options: Sequence[Alternative]) -> dict[str, Margin]:
    """Return the next smaller and the next larger option of every kind that offers one.

    Options that another one of their kind, or the chosen one, beats in bytes and in loss are
    passed over.
    """
    found = {}
    for kind in KINDS:
        mine = worthwhile([option for option in options if option.kind == kind])
        smaller = [option for option in mine if option.delta_bytes < 0]
        larger = [option for option in mine if option.delta_bytes > 0]
        if smaller or larger:
            found[kind] = Margin(smaller[-1] if smaller else None, larger[0] if larger else None)
    return found


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One site of a plan, or the first of sites that share one decision, for all of them.

    Args:
        site: Module name.
        shape: (out, in) of its weight.
        token: What the plan does.
        bytes: Its bytes in the file; of a cache, its bytes in memory.
        loss: Predicted loss of it alone, corrected.
        alternatives: The other options, smallest first.
    """

    site: str
    shape: tuple[int, int]
    token: str
    bytes: int
    loss: float
    alternatives: tuple[Alternative, ...]

    @property
    def margins(self) -> dict[str, Margin]:
        """The next steps by kind."""
        return margins(self.alternatives)


@dataclass(frozen=True, slots=True)
class PlanTable:
    """A trial explained.

    Args:
        record: The trial.
        weight_bytes: Exact size of its file.
        predicted_loss: The corrected score of the whole plan.
        rows: One a site, in model order.
        metric: Name of the loss.
    """

    record: TrialRecord
    weight_bytes: int
    predicted_loss: float
    rows: tuple[PlanRow, ...]
    metric: str = KL

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, in which losses bear the metric's name."""
        return {
            "trial": self.record.number,
            "weight_bytes": self.weight_bytes,
            "costs": dict(self.record.costs),
            "cost_sources": dict(self.record.sources),
            "efficiency": next(iter(finished_efficiency([self.record])), None),
            self.metric: self.record.loss,
            f"predicted_{self.metric}": self.predicted_loss,
            "rows": [self._row(row) for row in self.rows],
        }

    def _row(self, row: PlanRow) -> dict[str, Any]:
        data = asdict(row)
        data[self.metric] = data.pop("loss")
        data["alternatives"] = [self._alternative(option) for option in row.alternatives]
        data["margins"] = {
            kind: {
                "cheaper": margin.cheaper and self._alternative(margin.cheaper),
                "dearer": margin.dearer and self._alternative(margin.dearer),
            }
            for kind, margin in row.margins.items()
        }
        return data

    def _alternative(self, option: Alternative) -> dict[str, Any]:
        return {
            "token": option.token,
            "kind": option.kind,
            "delta_bytes": option.delta_bytes,
            f"delta_{self.metric}": option.delta_loss,
            "price_per_mb": option.price,
        }


def show_trial(study_dir: Path, storage: str | None, number: int) -> PlanTable:
    """Explain one trial of a study from its stored scores, loading no weights.

    Args:
        study_dir: The study directory.
        storage: Storage URL; ``None`` is the journal file in ``study_dir``.
        number: Trial number.

    Raises:
        ConfigError: If the study, the scores or the trial do not exist.
    """
    study = Study.open_existing(storage or study_dir)
    records = study.records()
    found = [record for record in records if record.number == number]
    if not found:
        known = ", ".join(str(record.number) for record in records[:8])
        raise ConfigError(
            f"trial {number} does not exist; the study has {len(records)} ({known}, ...)."
        )
    config, plan = load_study_config(study_dir), found[0].plan
    setup = stored_setup(config, study, plan.variant)
    context = stored_context(config, study, study_dir, plan.variant)
    first = first_context(config, study, study_dir)
    prior = None if first.variant == context.variant else correction_of(first, records)
    correction: Correction = correction_of(context, records, prior=prior)
    corrected = correction.apply()
    counted = PEAK_MEMORY_BYTES if PEAK_MEMORY_BYTES in setup.counted else WEIGHT_BYTES
    sizes = setup.problem(None, (counted,))
    problem = sizes.with_scores(corrected.score, corrected.bypass_score)
    rows = [_row(setup, problem, index, found[0]) for index in range(len(problem.groups))]
    for index, bypass in enumerate(problem.bypasses):
        dropped = plan[bypass.name] != DENSE
        inside = [row for row in rows if row.site in setup.sketch[bypass.name].members]
        saved = sum(row.bytes for row in inside) - bypass.cost
        lost = problem.bypass_score[index] - sum(row.loss for row in inside)
        drop = Alternative("bypass", -int(saved), float(lost), "bypass")
        rows.append(
            PlanRow(
                site=bypass.name,
                shape=(0, 0),
                token="bypass" if dropped else "kept",
                bytes=0 if dropped else -bypass.cost,
                loss=float(problem.bypass_score[index]) if dropped else 0.0,
                alternatives=() if dropped else (drop,),
            )
        )
    order = {site.name: place for place, site in enumerate(setup.sketch.sites)}
    rows.sort(key=lambda row: order[row.site])
    choice, bypassed = context.decisions(found[0].params)
    return PlanTable(
        record=found[0],
        weight_bytes=weight_bytes(setup.sketch, plan),
        predicted_loss=correction.predict(corrected.solution(choice, bypassed)),
        rows=tuple(rows),
        metric=study.metric,
    )


def _row(setup: Setup, problem: Problem, index: int, record: TrialRecord) -> PlanRow:
    group = problem.groups[index]
    site = setup.sketch[group.name]
    options = setup.lists[group.name]
    owner = setup.sketch.owner.get(site.name)
    if owner is not None and record.plan[owner] != DENSE:
        return PlanRow(site.name, site.shape, "(bypassed)", 0, 0.0, ())
    chosen = options.index(record.plan[site.name])
    together = next(sites for sites in setup.sketch.groups if sites[0] == group.name)
    size = sum(site_bytes(setup.sketch, name, options[chosen]) for name in together)
    if site.kind == "cache":
        size = int(group.cost[chosen])
    alternatives = tuple(
        Alternative(
            options[other].token(),
            int(group.cost[other] - group.cost[chosen]),
            float(group.score[other] - group.score[chosen]),
            kind_of_change(options[chosen], options[other]),
        )
        for other in range(len(options))
        if other != chosen
    )
    return PlanRow(
        site.name, site.shape, options[chosen].token(), size, float(group.score[chosen]),
        alternatives,
    )  # fmt: skip
