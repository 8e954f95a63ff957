"""The variants of a study: their workbenches, and what is known of each.

A variant is a prepared architecture, such as the model with narrower MLPs. It has a sketch,
statistics, scores and store entries of its own; what its plans are measured against is the base.
"""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel

from autocomp.config import StudyConfig
from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.metric import KL
from autocomp.core.plan import Plan
from autocomp.core.progress import Progress
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.variant import BASE
from autocomp.data import Corpus, Windows
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.ladder import Ladder
from autocomp.layers.store import content_digest
from autocomp.models.structure import build_sketch
from autocomp.models.surgeon import MlpShape, cut, mlp_shapes
from autocomp.search.allocate import offered
from autocomp.search.clock import Clock
from autocomp.search.context import SearchContext
from autocomp.search.edits import edit_tensors, prepared_edit
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.objectives import Objective, objective_of
from autocomp.search.scoring import score_options
from autocomp.search.setup import Setup
from autocomp.search.stored import (
    Prepared,
    scores_path,
    search_context,
    stored_setup,
    write_json,
)
from autocomp.search.study import Study
from autocomp.search.workbench import Workbench


class VariantBench(Workbench):
    """The workbench of a variant; text, store and the base's distributions are the base's.

    Args:
        base: The base's workbench.
        token: The variant, such as ``flap-p80``.
    """

    def __init__(self, base: Workbench, token: str) -> None:
        self.base = base
        self.variant = token
        self.progress = base.progress
        self.config, self.device, self.dtype = base.config, base.device, base.dtype
        self.seeds, self.batch_size = base.seeds, base.batch_size
        self.pool, self.store = base.pool, base.store
        edit = prepared_edit(base, token)
        self.edit_digest = content_digest(edit_tensors(edit))
        base.candidate.restore()
        # Original weights are only read, so what is not cut is shared; the body is written to.
        original: PreTrainedModel = base.loaded.model
        kept = copy.deepcopy(original, {id(p): p for p in original.parameters()})
        body = copy.deepcopy(base.model)
        for model in (kept, body):
            cut(model, edit)
        sketch = build_sketch(kept, base.sketch.model, dtype=base.sketch.dtype)
        self._hold(replace(base.loaded, model=kept, sketch=sketch), body)

    @property
    def shapes(self) -> dict[str, MlpShape]:
        """Shape of every MLP by name."""
        return mlp_shapes(self.loaded.model)

    @property
    def corpus(self) -> Corpus:
        """The study's text."""
        return self.base.corpus

    @property
    def calibration(self) -> Windows:
        """Calibration windows."""
        return self.base.calibration

    @property
    def search_windows(self) -> Tensor:
        """Search windows, (n, length)."""
        return self.base.search_windows

    @property
    def ladder(self) -> Ladder:
        """The fidelity ladder."""
        return self.base.ladder

    def meter(self, token_ids: Tensor, keep_bytes: int = 0) -> DivergenceMeter:
        """Return a meter against the dense base on some windows."""
        return self.base.meter(token_ids, keep_bytes)

    @property
    def search_meter(self) -> DivergenceMeter:
        """The meter of the search text."""
        return self.base.search_meter

    @property
    def heldout_meter(self) -> DivergenceMeter:
        """The meter of the held-out text."""
        return self.base.heldout_meter

    @cached_property
    def stats_digest(self) -> str:
        """Identifies what dense statistics are computed from."""
        text = f"{self.base.stats_digest}|{self.variant}|{self.edit_digest}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def head_token(self, layers: Mapping[str, LayerSpec]) -> str:
        """Return what identifies the head's weight in a plan among those of all variants."""
        token = super().head_token(layers)
        return token if token == "dense" else f"{self.variant}/{token}"


def dense_plan(bench: Workbench) -> Plan:
    """Return the plan that changes nothing of a workbench's variant."""
    return Plan({site.name: DENSE for site in bench.sketch.sites}, variant=bench.variant)


class Variants:
    """The base and the variants of a study on one machine.

    The base's workbench stays loaded, with one variant's beside it; another one is cut from the
    base, so no weight file is read twice.

    Args:
        config: The study's configuration.
        study: The study.
        progress: Listener.
        clock: Gets the stages ``load model``, ``prepare variant`` and those of the scores.
    """

    def __init__(
        self, config: StudyConfig, study: Study, progress: Progress, clock: Clock
    ) -> None:
        self.config = config
        self.study = study
        self.progress = progress
        self.clock = clock
        self._setups: dict[str, Setup] = {}
        self._beside: VariantBench | None = None

    @cached_property
    def base(self) -> Workbench:
        """The base's workbench, loaded on first use."""
        with self.clock.time("load model"):
            return Workbench(self.config, self.progress)

    @cached_property
    def objective(self) -> Objective:
        """What plans are measured by, its data read on first use.

        Raises:
            ConfigError: If its data is not what the study was made with.
        """
        with self.clock.time("load data"):
            found = objective_of(self.base)
        self.study.bind(f"{found.name}_digest", found.digest, "its data")
        return found

    def bench(self, variant: str) -> Workbench:
        """Return the workbench of a variant.

        Raises:
            ConfigError: If the variant's edit is not the one that the study was made with.
        """
        if variant == BASE:
            return self.base
        if self._beside is None or self._beside.variant != variant:
            self._beside = None
            base = self.base
            with self.clock.time("prepare variant"):
                found = VariantBench(base, variant)
            known = Prepared.of(self.study, variant)
            if known is not None and known.edit_digest != found.edit_digest:
                raise ConfigError(
                    f"the variant {variant} that is made here is not the one that the study in "
                    f"{self.study.study_dir} was made with: other kept channels or biases. Use "
                    "the machine, the versions and the cache of the study, or start another one."
                )
            self._beside = found
        return self._beside

    def setup(self, variant: str) -> Setup:
        """Return the setup of a variant, which is prepared and measured once a study."""
        if variant not in self._setups:
            if variant != BASE and Prepared.of(self.study, variant) is None:
                self._prepare(variant)
            setup = stored_setup(self.config, self.study, variant)
            self.study.set_lists(setup.lists, variant)
            self._setups[variant] = setup
        return self._setups[variant]

    def _prepare(self, variant: str) -> None:
        """Cut the base, measure what is left, and store both facts."""
        bench = self.bench(variant)
        assert isinstance(bench, VariantBench)
        with self.clock.time("prepare variant"):
            outcome = evaluate_plan(self.objective, bench, dense_plan(bench))
        kept = sum(shape.width for shape in bench.shapes.values())
        whole = sum(shape.width for shape in mlp_shapes(self.base.loaded.model).values())
        self.progress.log(
            f"{variant}: {kept} of {whole} MLP channels, {self.objective.name} "
            f"{outcome.loss:.4f} before compression"
        )
        known = Prepared(bench.shapes, bench.edit_digest, outcome.measurement)
        self.study.set_variant(variant, known.to_json())
        self.study.set_tokens("reference", variant, outcome.tokens)

    def _measure_base(self) -> None:
        """Measure the base once a study where the objective is not 0 for it, and store that."""
        if self.objective.name == KL:
            self.study.set_tokens("reference", BASE, self.objective.reference_tokens)
        if self.objective.name == KL or self.study.base_loss is not None:
            return
        with self.clock.time("measure base"):
            outcome = evaluate_plan(self.objective, self.base, dense_plan(self.base))
        self.progress.log(f"{self.objective.name} {outcome.loss:.4f} before compression")
        self.study.set_base(outcome.measurement)
        read = outcome.tokens + self.objective.reference_tokens
        self.study.set_tokens("reference", BASE, read)
        self._setups.pop(BASE, None)  # it was made without this loss

    def contexts(self) -> list[SearchContext]:
        """Score every option of every variant that can hold the limits; the base comes first.

        Raises:
            InfeasibleError: If none can.
        """
        self._measure_base()
        found, refused = [], None
        for variant in (BASE, *self.config.space.variants):
            setup = self.setup(variant)
            try:
                setup.check_reach()
            except InfeasibleError as error:
                self.progress.log(f"{variant} is left out: {error}")
                refused = error
                continue
            bench = self.bench(variant)
            scores = score_options(
                bench,
                setup.site_lists,
                self.progress,
                self.clock,
                self.config.search.score,
                self.objective,
                offered(self.config.search.allocations, setup.sketch, setup.lists),
            )
            self.study.set_tokens("calibration", variant, bench.calibration.tokens)
            if scores.tokens:
                self.study.set_tokens("scoring", variant, scores.tokens)
            write_json(scores_path(self.study.study_dir, variant), scores.to_json())
            found.append(search_context(setup, scores, self.study.profiles))
        if not found and refused is not None:
            raise refused
        return found
