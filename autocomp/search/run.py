"""The main job: score, propose, measure, finish; resumable at any moment."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autocomp.config import StudyConfig, fingerprint
from autocomp.core.errors import ConfigError, InfeasibleError, NumericalError
from autocomp.core.metric import short_name
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.registry import SAMPLERS, SPACES
from autocomp.core.seeds import SeedTree
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.variant import BASE
from autocomp.models import sketch_of
from autocomp.search.ask import Ask
from autocomp.search.clock import Clock
from autocomp.search.context import SearchContext
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.finish import write_artefact
from autocomp.search.gate import Gate
from autocomp.search.heldout import measure_artefact
from autocomp.search.objectives import check_objective
from autocomp.search.records import (
    FinishedRecord,
    Measured,
    NewTrial,
    TrialRecord,
    describe,
    quality,
)
from autocomp.search.result import SearchResult, summarise
from autocomp.search.setup import Setup, family, format_bytes
from autocomp.search.study import Study
from autocomp.search.variants import Variants, write_json
from autocomp.search.workbench import Workbench

logger = logging.getLogger(__name__)

CONFIG_FILE = "study.json"
TIMINGS_FILE = "timings.json"
ARTEFACTS = "artefacts"
UNIFORM = "uniform"
ALWAYS_FULL = (UNIFORM, "probe", "knapsack:score")


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
    """One study on one machine: the inline driver.

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
            )
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

    def contexts(self) -> list[SearchContext]:
        """Score every option of every variant and return what proposals are made from."""
        self.study.bind("model_digest", self.bench.loaded.digest, "the model")
        return self.variants.contexts()

    def run_trials(self, contexts: Sequence[SearchContext]) -> None:
        """Measure proposals until the study holds as many as were asked for."""
        limits = self.config.search
        total = limits.trials
        self.progress.start("trials", total, "trial")
        self.progress.advance(min(total, self.study.next_logical()))
        for record in self.study.orphans():
            if self.study.renew_lease(record.number):
                self._measure(record.number, record.plan, record.origin, record.logical)
        while (index := self.study.next_logical()) < total:
            if limits.timeout_s is not None and self.seconds > limits.timeout_s:
                self.progress.log(f"time limit of {limits.timeout_s:.0f} s reached")
                break
            with self.clock.time("record"):
                told = self.study.records()
            with self.clock.time("solve"):
                proposal = SAMPLERS[limits.sampler](
                    Ask(index, SeedTree(self.config.seed), contexts, told)
                )
            if proposal is None:
                self.progress.log("no new plan is left near the best ones; stopping")
                break
            setup = self.variants.setup(proposal.plan.variant)
            with self.clock.time("record"):
                new = NewTrial(
                    logical=index,
                    params=proposal.params,
                    distributions=setup.space.distributions(),
                    plan=proposal.plan,
                    origin=proposal.origin,
                    family=proposal.family,
                    weight_bytes=setup.costs(proposal.plan)["weight_bytes"],
                    constraints=setup.violation(proposal.plan),
                    details=proposal.details,
                )
                number = self.study.add(new)
            if number is not None:
                self._measure(number, proposal.plan, proposal.origin, index)
        self.progress.finish()

    def _measure(self, number: int, plan: Plan, origin: str, logical: int) -> None:
        """Evaluate a running trial and tell it."""
        setup = self.variants.setup(plan.variant)
        violations = setup.violation(plan)
        broken = [f"{name} by {value:.0f}" for name, value in violations.items() if value > 0]
        if broken:
            self.study.tell_infeasible(number, f"over the limit: {', '.join(broken)}")
            self.progress.advance(note=f"#{number} infeasible")
            return
        objective, bench = self.variants.objective, self.variants.bench(plan.variant)
        size = setup.costs(plan)["weight_bytes"]
        gate = None
        if not origin.startswith(ALWAYS_FULL):
            before = [record for record in self.study.records() if record.logical < logical]
            gate = Gate.of(before, size, objective.ladder[-1])

        def after_rung(losses: Sequence[float]) -> bool:
            self.study.renew_lease(number)
            return gate is not None and gate.stops(losses)

        try:
            outcome = evaluate_plan(objective, bench, plan, after_rung)
        except NumericalError as error:
            self.study.tell_failed(number, str(error))
            self.progress.advance(note=f"#{number} failed: {error}")
            return
        for name, seconds in outcome.stages.items():
            self.clock.add(name, seconds)
        with self.clock.time("record"):
            result = Measured(
                loss=outcome.loss,
                unit_loss=outcome.unit_loss,
                tokens=outcome.tokens,
                seconds=outcome.seconds,
                measurement=outcome.measurement.to_json(),
            )
            if outcome.complete:
                self.study.tell_measured(number, result)
            else:
                reason = f"worse than a plan no larger after {outcome.tokens} tokens"
                self.study.tell_stopped(number, result, reason)
        rung = "" if outcome.complete else f" (stopped at {outcome.tokens} tokens)"
        self.progress.advance(
            note=f"#{number} {origin} {family(plan)} {format_bytes(size)} "
            f"{short_name(objective.name)} {outcome.loss:.4f}{rung}"
        )

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
        """Finish the best measured plans, and the best uniform ones in the same way.

        Raises:
            InfeasibleError: If no trial was measured within the limits.
        """
        feasible = sorted(
            (record for record in self.study.records() if record.feasible),
            key=lambda record: (record.loss, record.logical),
        )
        if not feasible:
            raise InfeasibleError(
                "no plan within the limits was measured to the top rung. Raise --trials or the "
                "budget; `autocomp front` shows what was tried."
            )
        count = self.config.search.finalists
        uniform = [record for record in feasible if record.origin == UNIFORM]
        chosen = (*feasible[:count], *uniform[: min(2, count)])
        for _, number in sorted({(record.plan.variant, record.number) for record in chosen}):
            self.finish(number)

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
        config: Model and data; the space and the budget are not used.
        linear: Token for the linears of the blocks.
        embedding: Token for the embedding and an untied head; ``None`` leaves them dense.
        out: Target folder.
        progress: Listener.

    Raises:
        PlanError: Before any work, when a spec does not fit a layer, which the message names.
    """
    tokens = [embedding] if embedding else ["dense"]
    SPACES["joint"].candidates(
        sketch_of(config.model), linear=[linear], embedding=tokens, bypass=False
    )
    inner = LayerSpec.parse(linear)
    outer = LayerSpec.parse(embedding) if embedding else DENSE
    bench = Workbench(config, progress)
    specs = {"linear": inner, "embedding": outer, "head": outer, "subblock": DENSE, "cache": DENSE}
    plan = Plan({site.name: specs[site.kind] for site in bench.sketch.sites})
    return write_artefact(bench, plan, out, {"command": "compress"}, progress)
