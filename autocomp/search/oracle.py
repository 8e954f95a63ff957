"""Reads of the model that samplers ask for beside the trials: gradients, and other text.

Every answer is a pure function of the plan, so it is kept in the study directory: a study that
resumes reads it from there, and its tokens count once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from autocomp.core.metric import KL
from autocomp.core.plan import Plan
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import is_bypassed
from autocomp.evaluate.body import plan_states
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.gradient import Watched, backward_pass
from autocomp.models.device import memory_bytes
from autocomp.models.wiring import trace
from autocomp.search.ask import Linearisation
from autocomp.search.stored import write_json
from autocomp.search.variants import Variants
from autocomp.search.workbench import KEPT_SHARE, Workbench

GRADIENT_TOKENS = 8192
POOL_RATIO = 4
BACKWARD = 2
"""Tokens that a backward pass counts for."""

FOLDER = "linearised"
READING = "read for proposals"
"""Stage of what samplers read."""


class ModelOracle:
    """Reads of the models of a study, on its calibration text.

    Args:
        variants: The study's models.
        study_dir: Where answers are kept.
    """

    def __init__(self, variants: Variants, study_dir: Path) -> None:
        self._variants = variants
        self._folder = study_dir / FOLDER
        self._meters: dict[int, DivergenceMeter] = {}

    @cached_property
    def _windows(self) -> Tensor:
        """The text, (n, length); less than is wanted where the corpus has no more."""
        base = self._variants.base
        wanted = POOL_RATIO * base.config.data.rungs[-1]
        return base.windows("calibration", wanted, fewer=True).input_ids

    @property
    def pool(self) -> int:
        """How many windows :meth:`losses` may read."""
        return len(self._windows)

    @property
    def parts(self) -> int:
        """How many parts of the text there are; 0 where the objective is no KL."""
        if self._variants.objective.name != KL:
            return 0
        return max(1, len(self._windows) // self._part)

    @property
    def _part(self) -> int:
        """Windows of a part."""
        return min(len(self._windows), max(1, GRADIENT_TOKENS // self._windows.shape[1]))

    def _meter(self, part: int) -> DivergenceMeter:
        """Return the meter of a part, made when it is first read."""
        if part not in self._meters:
            base = self._variants.base
            windows = self._windows[part * self._part : (part + 1) * self._part]
            kept = int(KEPT_SHARE * memory_bytes(base.device) / self.parts)
            self._meters[part] = base.meter(windows, kept)
            tokens = windows.numel()
            self._variants.study.set_tokens("reference", f"part {part}", tokens)
        return self._meters[part]

    def losses(self, plan: Plan, units: Sequence[int]) -> tuple[float, ...]:
        """Return the KL of some windows of the text, nats a token."""
        with self._variants.clock.time(READING):
            return self._losses(plan, units)

    def _losses(self, plan: Plan, units: Sequence[int]) -> tuple[float, ...]:
        bench = self._variants.bench(plan.variant)
        meters = {part: self._meter(part) for part in {unit // self._part for unit in units}}
        bench.candidate.apply(plan, bench.operands)
        state, head = plan_states(bench.sketch, plan), bench.head_token(plan.layers)
        found: dict[int, float] = {}
        for part, meter in meters.items():
            mine = [unit for unit in units if unit // self._part == part]
            inside = [unit % self._part for unit in mine]
            scores = meter.measure(bench.model, inside, head_token=head, state=state)
            found |= dict(zip(mine, scores.kl_nats, strict=True))
        return tuple(found[unit] for unit in units)

    def linearised(self, plan: Plan, part: int) -> Linearisation:
        """Return the first-order changes around a plan on one part of the text."""
        path = self._folder / f"{plan.digest[:32]}-{part}.json"
        found = _read(path)
        if found is None:
            with self._variants.clock.time(READING):
                found, tokens = self._linearise(plan, part)
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(found))
            self._variants.study.set_tokens(
                "gradient", f"{plan.digest[:16]}-{part}", (1 + BACKWARD) * tokens
            )
        return found

    def _linearise(self, plan: Plan, part: int) -> tuple[Linearisation, int]:
        """Return the changes and the tokens that were read."""
        bench, setup = self._variants.bench(plan.variant), self._variants.setup(plan.variant)
        meter = self._meter(part)
        changes = Changes(bench, plan, setup.site_lists)
        windows = range(len(meter.reference.windows))
        total = 0.0
        for start in windows[:: bench.batch_size]:
            batch = windows[start : start + bench.batch_size]
            total += len(batch) * changes.read(meter, batch)
        found = changes.mean(total / len(windows) - meter.floor_nats)
        return found, meter.reference.windows.numel()


class Changes:
    """Sums the first-order changes around a plan over batches of windows.

    Args:
        bench: Loaded model of the plan's variant; its live candidate takes the plan.
        plan: Where the gradient is taken.
        options: What else each site may be.
    """

    def __init__(
        self, bench: Workbench, plan: Plan, options: Mapping[str, Sequence[LayerSpec]]
    ) -> None:
        self._bench, self._plan, self._options = bench, plan, options
        bench.candidate.restore()
        outputs = trace(bench.layout).outputs
        sites = [
            site
            for site in bench.sketch.sites
            if site.kind == "linear"
            and site.name in options
            and not is_bypassed(bench.sketch, plan, site.name)
        ]
        for site in sites:  # before anything is watched, for a miss runs the model
            for spec in options[site.name]:
                self._weight(site.name, spec)
        bench.candidate.apply(plan, bench.operands)
        self._watched = Watched(
            linears={site.name: bench.layout.get(site.name) for site in sites},
            reads={site.name: site.reads for site in sites},
            subblocks={
                site.name: bench.layout.get(outputs[site.name])
                for site in bench.sketch.subblocks()
                if plan[site.name] == DENSE
            },
        )
        self._sums: dict[str, dict[str, float]] = {}
        self._drop: dict[str, float] = dict.fromkeys(self._watched.subblocks, 0.0)
        self._windows = self._batch = 0

    def read(self, meter: DivergenceMeter, windows: Sequence[int]) -> float:
        """Add the changes on some windows; return the mean KL, the floor included."""
        self._batch = len(windows)
        self._windows += len(windows)
        bench = self._bench
        head = bench.head_token(self._plan.layers)
        loss, drop = backward_pass(meter, bench.model, windows, head, self._watched, self._add)
        for name, value in drop.items():
            self._drop[name] += len(windows) * value
        return loss

    def _add(self, name: str, gradient: Tensor) -> None:
        """Add ``⟨gradient, Ŵ⟩`` of every option of a site, and of the plan's own."""
        sums = self._sums.setdefault(name, {})
        for spec in {*self._options[name], self._plan[name]}:
            if spec.activation is None:
                weight = self._weight(name, spec).to(gradient.device)
                value = torch.dot(gradient.flatten(), weight.float().flatten()).item()
                sums[spec.token()] = sums.get(spec.token(), 0.0) + self._batch * value

    def _weight(self, name: str, spec: LayerSpec) -> Tensor:
        """Return what a site multiplies its given input with, (out, in)."""
        if spec == DENSE:
            return self._bench.weight(name)
        operands = self._bench.operands(name, spec)
        if operands.prepare is None:
            return operands.weight
        return self._bench.compressed(name, spec).to_dense()

    def mean(self, loss: float) -> Linearisation:
        """Return the changes a token of all windows that were read.

        Args:
            loss: Loss of the plan on them.
        """
        options = {}
        for name, sums in self._sums.items():
            own = self._plan[name].token()
            if own in sums:  # a plan that rounds inputs has no weight to go on from
                options[name] = {
                    token: (value - sums[own]) / self._windows for token, value in sums.items()
                }
        drop = {name: value / self._windows for name, value in self._drop.items()}
        return Linearisation(loss, options, drop)


def _read(path: Path) -> Linearisation | None:
    """Return what a file holds; ``None`` when it is absent or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Linearisation(data["loss"], data["options"], data["drop"])
    except (OSError, ValueError, KeyError):
        return None
