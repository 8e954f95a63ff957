"""Recovery: a finished trial trained into a better one of the same formats and bytes.

Training is a job of its own, never part of a trial: it reads the artefact's file, trains what a
model method trains with the KL of the base to the model on the study's calibration text, and
writes another artefact beside it, which is measured like every other. Search and held-out text
are not read. The job saves its state every few steps; a killed one goes on from there.
"""

import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from autocomp.core.errors import ConfigError, StoreError
from autocomp.core.method import ModelContext
from autocomp.core.progress import Progress
from autocomp.core.registry import METHODS, nearest
from autocomp.formats.base import CompressedWeight
from autocomp.formats.io import load as load_tensors
from autocomp.formats.io import save
from autocomp.layers.linear import CompressedLinear
from autocomp.layers.native import WEIGHTS_FILE, load, read_plan
from autocomp.layers.rewrite import rewrite_native
from autocomp.search.heldout import measure_artefact
from autocomp.search.records import FinishedRecord
from autocomp.search.run import Search, load_study_config
from autocomp.search.workbench import Workbench

CHECKPOINT_STEPS = 20
SHOWN_STEPS = 25


@dataclass(frozen=True, slots=True)
class Recovery:
    """A trial before and after training, each measured from its file on held-out text."""

    before: FinishedRecord
    after: FinishedRecord


def parse_recovery(token: str) -> Any:
    """Return the spec of a model method's token.

    Raises:
        ConfigError: If the method is unknown; the message lists the nearest names.
        PlanError: If its parameters cannot be read.
    """
    name = token.partition("-")[0]
    known = [key for key, method in METHODS.items() if method.scope == "model"]
    if name not in known:
        raise ConfigError(
            f"unknown recovery {token!r}.{nearest(name, known)} Known: {', '.join(known)}; "
            "a method's parameters follow its name, as in lora-r8-300."
        )
    return METHODS[name].spec.parse(token)


def recover_trial(
    study_dir: Path, storage: str | None, number: int, token: str, progress: Progress
) -> Recovery:
    """Train a trial's finished artefact; finish it first when it is not, reuse what is done.

    Args:
        study_dir: The study.
        storage: Storage URL; ``None`` is the journal file in ``study_dir``.
        number: Trial number.
        token: What to train and how long, such as ``lora-r8-300``.
        progress: Listener.

    Raises:
        ConfigError: If the study, the trial or the method is unknown, or there is nothing to
            train.
        PlanError: If the token cannot be read.
    """
    spec = parse_recovery(token)
    search = Search(load_study_config(study_dir), study_dir, storage, progress)
    search.finish(number)
    kept = {record.recovery: record for record in search.study.finished(number)}
    before, token = kept[""], spec.token()
    source = study_dir / before.artefact
    folder = source.with_name(f"{source.name}+{token}")
    known = token in kept and kept[token].finish == before.finish
    if known and (folder / WEIGHTS_FILE).is_file():
        return Recovery(before, kept[token])
    plan = replace(read_plan(source), recovery=token)
    bench = search.variants.bench(plan.variant)
    state = folder.with_name(f".{folder.name}.safetensors")
    job = _Job(bench, source, spec, state, progress)
    progress.log(f"training trial {number}; it goes on here when it is interrupted: {state}")
    rewrite_native(source, folder, plan=plan, weights=job.train(), extra={"recovery": token})
    begun = time.perf_counter()
    held = measure_artefact(search.variants.objective, bench, folder, plan, progress)
    after = replace(
        before,
        artefact=folder.relative_to(study_dir).as_posix(),
        calibration_tokens=job.tokens,
        seconds=job.seconds + time.perf_counter() - begun,
        recovery=token,
        **held.fields(),
    )
    search.study.set_finished(after)
    state.unlink(missing_ok=True)
    return Recovery(before, after)


class _Job:
    """One training run, resumable through a file.

    Args:
        bench: The workbench of the plan's variant.
        source: The artefact.
        spec: What to train and how long.
        state: Where the state is saved.
        progress: Listener.
    """

    def __init__(
        self, bench: Workbench, source: Path, spec: Any, state: Path, progress: Progress
    ) -> None:
        self.bench = bench
        self.source = source
        self.spec = spec
        self.state = state
        self.progress = progress
        self.seconds, self.tokens = 0.0, 0
        self._method = METHODS[spec.method]

    def train(self) -> dict[str, CompressedWeight]:
        """Return the trained weights by site; ``seconds`` and ``tokens`` then are of all runs.

        Raises:
            ConfigError: If no linear is compressed.
        """
        begun, token = time.perf_counter(), self.spec.token()
        model = load(self.source, str(self.bench.device), self.bench.dtype, memory="decoded")
        context, digest = self._context(model), self._digest()
        saved, earlier, self.tokens = self._saved(digest)
        done = 0
        self.progress.start(f"recover {token}", self.spec.steps, "step")
        losses: deque[float] = deque(maxlen=SHOWN_STEPS)
        for step in self._method().train(self.spec, replace(context, state=saved)):
            losses.append(step.loss)
            self.seconds = earlier + time.perf_counter() - begun
            left = self.seconds / step.number * (self.spec.steps - step.number)
            note = f"KL {fmean(losses):.4f}, {left / 60:.0f} min left"
            self.progress.advance(step.number - done, note)
            done = step.number
            if done % CHECKPOINT_STEPS == 0 and done < self.spec.steps:
                save(self.state, step.state(), self._metadata(digest))
        self.progress.finish(f"KL {fmean(losses):.4f} nats on calibration text")
        weights: dict[str, CompressedWeight] = step.weights()
        return weights

    def _metadata(self, digest: str) -> dict[str, Any]:
        """Return what is saved beside a state."""
        return {"digest": digest, "seconds": self.seconds, "tokens": self.tokens}

    def _context(self, model: PreTrainedModel) -> ModelContext:
        """Return what a method trains a loaded artefact with."""
        modules = dict(model.named_modules())
        linears = {
            site.name: module
            for site in self.bench.sketch.sites
            if site.kind == "linear"
            and isinstance(module := modules.get(site.name), CompressedLinear)
        }
        if not linears:
            raise ConfigError(f"{self.source} has no compressed linear, so nothing is trained.")
        windows = self.bench.calibration.input_ids
        meter = self.bench.meter(windows)
        head = self.bench.head_token(read_plan(self.source).layers)

        def backward(chosen: Sequence[int]) -> float:
            self.tokens += len(chosen) * windows.shape[1]
            return meter.backward(model, chosen, head)

        return ModelContext(
            linears=linears,
            windows=len(windows),
            backward=backward,
            seed=self.bench.config.seed,
        )

    def _digest(self) -> str:
        """Return what identifies the result: the artefact, the text, the training."""
        _, metadata = load_tensors(self.source / WEIGHTS_FILE)
        training = f"{self.spec.token()}@{self._method.version}"
        seed = str(self.bench.config.seed)
        parts = (metadata["sha256"], self.bench.stats_digest, training, seed)
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def _saved(self, digest: str) -> tuple[dict[str, Tensor], float, int]:
        """Return the saved state, and the seconds and tokens spent; nothing when none fits."""
        if not self.state.is_file():
            return {}, 0.0, 0
        try:
            tensors, metadata = load_tensors(self.state)
            if metadata["digest"] == digest:
                return tensors, float(metadata["seconds"]), int(metadata["tokens"])
        except (StoreError, KeyError) as error:
            self.progress.log(f"{self.state} is damaged ({error})")
        self.progress.log("the saved state belongs to another training; starting afresh")
        return {}, 0.0, 0
