"""The main job: score, propose, measure, finish; resumable at any moment."""

import json
import logging
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from autocomp.config import StudyConfig, fingerprint
from autocomp.core.cost import WEIGHT_BYTES, format_cost, option_of
from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.metric import short_name
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.registry import DRIVERS, SAMPLERS, SPACES
from autocomp.core.seeds import SeedTree
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.variant import BASE
from autocomp.cost import cost_model
from autocomp.models import sketch_of
from autocomp.search.ask import Ask
from autocomp.search.clock import Clock
from autocomp.search.context import ALLOCATION, SearchContext
from autocomp.search.drivers.queue import Driver, TrialQueue
from autocomp.search.drivers.worker import ModelEvaluator, other_process
from autocomp.search.finalists import Finalists
from autocomp.search.finish import write_artefact
from autocomp.search.gate import Gate
from autocomp.search.heldout import measure_artefact
from autocomp.search.objectives import check_objective
from autocomp.search.oracle import READING, ModelOracle
from autocomp.search.records import (
    FinishedRecord,
    NewTrial,
    TrialRecord,
    describe,
    quality,
)
from autocomp.search.result import SearchResult, summarise
from autocomp.search.setup import Setup, workload_of
from autocomp.search.stored import searched_variants, stored_context, write_json
from autocomp.search.study import Study
from autocomp.search.variants import Variants
from autocomp.search.warm import warm_start
from autocomp.search.workbench import Workbench

logger = logging.getLogger(__name__)

CONFIG_FILE = "study.json"
TIMINGS_FILE = "timings.json"
ARTEFACTS = "artefacts"
UNIFORM = "uniform"
ALWAYS_FULL = (UNIFORM, ALLOCATION, "probe", "knapsack:score")


def _read_timings(study_dir: Path) -> list[dict[str, Any]]:
    """Return the time table of earlier runs; none when there is no whole one."""
    try:
        rows = json.loads((study_dir / TIMINGS_FILE).read_text(encoding="utf-8"))
        return [
            row for row in rows if {"stage", "seconds", "visits", "peak_rss_bytes"} <= set(row)
        ]
    except (OSError, ValueError, TypeError):
        return []


class Search:
    """One study on one machine, which may have others measure its plans.

    Args:
        config: The study's configuration.
        study_dir: Where the study lives.
        storage: Storage URL; ``None`` is the journal file in ``study_dir``.
        progress: Listener.

    Raises:
        InfeasibleError: Before any work, when the budget cannot be reached.
        ConfigError: If the study at ``storage`` was made with other settings.
    """

    def __init__(
        self, config: StudyConfig, study_dir: Path, storage: str | None, progress: Progress
    ) -> None:
        self.config = config
        self.study_dir = study_dir
        self.progress = progress
        self._contexts: Sequence[SearchContext] = ()
        self._begun = time.perf_counter()
        self.clock = Clock(_read_timings(study_dir))
        with self.clock.time("set up"):
            check_objective(config.objective)
            Setup.of(config).check_feasible()
            study_dir.mkdir(parents=True, exist_ok=True)
            self.study = Study.open(
                storage,
                study_dir,
                fingerprint=fingerprint(config),
                metric=config.objective.metric,
                cost=config.objective.cost,
            )
            warm_start(config, self.study)
            self.variants = Variants(config, self.study, progress, self.clock)
            self.setup = self.variants.setup(BASE)
            write_json(study_dir / CONFIG_FILE, config.model_dump(mode="json"))

    @property
    def seconds(self) -> float:
        """Wall time of this run."""
        return time.perf_counter() - self._begun

    @property
    def bench(self) -> Workbench:
        """The base's workbench, made on first use."""
        return self.variants.base

    @cached_property
    def oracle(self) -> ModelOracle:
        """What samplers may read of the models."""
        return ModelOracle(self.variants, self.study_dir)

    def contexts(self) -> list[SearchContext]:
        """Score every option of every variant and return what proposals are made from."""
        self.study.bind("model_digest", self.bench.loaded.digest, "the model")
        return self.variants.contexts()

    def propose(self, index: int, told: Sequence[TrialRecord]) -> NewTrial | None:
        """Return the proposal of a logical trial; ``None`` when no new plan is left to try."""
        effort = self.config.search
        ask = Ask(
            index, SeedTree(self.config.seed), self._contexts, told, self.oracle, effort.moves
        )
        with self.clock.time("solve", without=READING):
            proposal = SAMPLERS[effort.sampler](ask)
        if proposal is None:
            return None
        if units := proposal.details.get("units"):
            self.study.set_tokens("selection", str(index), units * self.config.data.window)
        setup = self.variants.setup(proposal.plan.variant)
        costs = setup.costs(proposal.plan)
        return NewTrial(
            logical=index,
            params=proposal.params,
            distributions=setup.space.distributions(),
            plan=proposal.plan,
            origin=proposal.origin,
            family=proposal.family,
            weight_bytes=int(costs[WEIGHT_BYTES]),
            constraints=setup.violation(proposal.plan),
            details=proposal.details,
            costs=costs,
            sources=setup.sources(proposal.plan),
        )

    def gate(self, trial: TrialRecord, before: Sequence[TrialRecord]) -> Gate | None:
        """Return what a trial has to keep up with, from the trials proposed before it."""
        if trial.origin.startswith(ALWAYS_FULL):
            return None
        return Gate.of(before, trial.cost, self.variants.objective.ladder[-1])

    def out_of_time(self) -> bool:
        """Return whether nothing more shall be proposed."""
        limit = self.config.search.timeout_s
        return limit is not None and self.seconds > limit

    def run_trials(self, contexts: Sequence[SearchContext]) -> None:
        """Measure proposals until the study holds as many as were asked for."""
        effort = self.config.search
        self._contexts = contexts
        driver: Driver = DRIVERS[effort.driver_name](effort)
        facts = self.study.optuna.user_attrs
        driver.run(
            TrialQueue(self.study, self, effort.trials, self.progress, self.clock),
            ModelEvaluator(self.variants),
            partial(other_process, self.config, facts),
        )
        self.progress.finish()

    def finish(self, number: int) -> FinishedRecord:
        """Finish a trial into an artefact and measure it from its file; reuse one that exists."""
        record = self._record(number)
        folder = self.study_dir / ARTEFACTS / f"trial-{number}"
        kept = [done for done in self.study.finished(number) if self._exists(done)]
        if any(not done.recovery and done.finish == self.config.search.finish for done in kept):
            return min(kept, key=quality)
        begun, bench = time.perf_counter(), self.variants.bench(record.plan.variant)
        self.progress.log(f"finishing trial {number} ({record.family}, {record.origin})")
        with self.clock.time("finish"):
            extra = {"trial": number, "study": str(self.study.optuna.study_name)}
            write_artefact(bench, record.plan, folder, extra, self.progress)
        with self.clock.time("measure held-out"):
            held = measure_artefact(
                self.variants.objective, bench, folder, record.plan, self.progress
            )
        data = self.config.data
        finished = FinishedRecord(
            number=number,
            artefact=f"{ARTEFACTS}/trial-{number}",
            corpus=data.corpus,
            window=data.window,
            tokens=data.heldout_tokens,
            calibration_tokens=bench.calibration.tokens,
            seconds=time.perf_counter() - begun,
            finish=self.config.search.finish,
            **held.fields(),
        )
        self.study.set_finished(finished)
        self.study.set_tokens("reference", "heldout", data.heldout_tokens)
        self.progress.log(f"trial {number}: {describe(finished)}")
        return finished

    def _exists(self, finished: FinishedRecord) -> bool:
        """Return whether the weights of a finished artefact are on disk."""
        return (self.study_dir / finished.artefact / "model.safetensors").is_file()

    def _record(self, number: int) -> TrialRecord:
        for record in self.study.records():
            if record.number == number:
                return record
        raise ConfigError(f"trial {number} does not exist in {self.study_dir}.")

    def finish_finalists(self) -> None:
        """Finish the best measured plans, the best uniform ones, and what their results ask for.

        Raises:
            InfeasibleError: If no trial was measured within the limits.
        """
        feasible = [record for record in self.study.records() if record.feasible]
        if not feasible:
            raise InfeasibleError(
                "no plan within the limits was measured to the top rung. Raise --trials or the "
                "budget; `autocomp front` shows what was tried."
            )
        contexts = [
            stored_context(self.config, self.study, self.study_dir, variant)
            for variant in searched_variants(self.config, self.study_dir)
        ]
        chosen = Finalists(feasible, contexts, self.config.search)
        for record, expected in chosen.finish(self._finish_plainly):
            self.progress.log(
                f"finished results contradict the search: trial {record.number} is finished too, "
                f"expected {short_name(self.study.metric)} {expected:.4f}"
            )

    def _finish_plainly(self, record: TrialRecord) -> FinishedRecord:
        """Finish a trial and return its artefact before any training."""
        self.finish(record.number)
        return next(done for done in self.study.finished(record.number) if not done.recovery)

    def run(self) -> SearchResult:
        """Do all of it and return the result."""
        try:
            self.run_trials(self.contexts())
            self.finish_finalists()
        finally:
            timings = self.clock.table()
            write_json(self.study_dir / TIMINGS_FILE, timings)
        return summarise(self.study, self.study_dir, timings)


def run_search(
    config: StudyConfig, *, study_dir: Path, storage: str | None, progress: Progress
) -> SearchResult:
    """Search under a budget, finish the finalists, and return the front.

    Running it again on the same directory resumes; a larger ``search.trials`` extends.

    Args:
        config: Model, data, space, budget and effort.
        study_dir: Where the study and its artefacts live.
        storage: Storage URL; ``None`` is a journal file in ``study_dir``.
        progress: Listener.

    Raises:
        InfeasibleError: If the budget cannot be reached, or no measured plan holds it.
        ConfigError: If a name is unknown or the study was made with other settings.
    """
    return Search(config, study_dir, storage, progress).run()


def load_study_config(study_dir: Path) -> StudyConfig:
    """Return the configuration that a study directory was made with.

    Raises:
        ConfigError: If the directory is no study.
    """
    path = study_dir / CONFIG_FILE
    try:
        return StudyConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{study_dir} is not a study directory: {path.name} cannot be read ({error}). Give "
            "the --study-dir of a search."
        ) from error


def finish_trial(
    study_dir: Path, storage: str | None, number: int, progress: Progress
) -> FinishedRecord:
    """Finish one trial of an existing study; return what is stored when it is finished already."""
    search = Search(load_study_config(study_dir), study_dir, storage, progress)
    return search.finish(number)


def compress_uniform(
    config: StudyConfig,
    *,
    linear: str,
    embedding: str | None,
    out: Path,
    progress: Progress,
) -> Path:
    """Compress every linear with one spec, without a search, and write a native folder.

    Args:
        config: Model, data and the limits of the budget; the space is not used.
        linear: Token for the linears of the blocks.
        embedding: Token for the embedding and an untied head; ``None`` leaves them dense.
        out: Target folder.
        progress: Listener.

    Raises:
        PlanError: Before any work, when a spec does not fit a layer, which the message names.
        InfeasibleError: Before any work, when the plan breaks a limit.
    """
    tokens, sketch = [embedding] if embedding else ["dense"], sketch_of(config.model)
    SPACES["joint"].candidates(sketch, linear=[linear], embedding=tokens, bypass=False)
    inner = LayerSpec.parse(linear)
    outer = LayerSpec.parse(embedding) if embedding else DENSE
    specs = {"linear": inner, "embedding": outer, "head": outer, "subblock": DENSE, "cache": DENSE}
    plan = Plan({site.name: specs[site.kind] for site in sketch.sites})
    for name, limit in config.budget.limits.items():
        model = cost_model(name, sketch, workload_of(config))
        value, source = model.predict(plan) * model.tick, model.source_of(plan)
        found = f"{format_cost(name, value)} ({source})"
        if value > limit:
            raise InfeasibleError(
                f"{linear}, embedding {embedding or 'dense'}, takes {found}, more than "
                f"{option_of(name)} {format_cost(name, limit)}. Raise it or take fewer bits."
            )
        progress.log(f"{name}: {found}, limit {format_cost(name, limit)}")
    bench = Workbench(config, progress)
    return write_artefact(bench, plan, out, {"command": "compress"}, progress)
