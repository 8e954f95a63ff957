"""Times of plans from measured tables: operations, and overheads fitted on whole models.

``scale · Σ operations + fixed + attention · kept attentions + mlp · kept MLPs``, each operation
looked up under the device's name. It adds up over sites like every cost, a sub-block's share being
its overhead.
"""

import math
from collections.abc import Callable
from functools import cached_property
from statistics import median
from typing import ClassVar

from autocomp.core.cost import DECODE_MS, MEASURED, MIXED, MODELLED, PREFILL_MS
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.registry import COSTS
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.device import Device
from autocomp.cost.models import Additive, CostModel, Roofline, Workload
from autocomp.cost.ops import is_attention, model_key, site_ops
from autocomp.cost.times import DECODE, PREFILL, OpKey, Overhead, TimeTable

PICOSECONDS = 1e12


class _Measured(Additive):
    """A time that is looked up.

    Where ``workload.times`` is ``mixed``, an operation that was not measured takes its roofline
    times the median of measured time over roofline, over the measured operations of its kind (all
    of them, where there is none of its kind), and a model without fitted overhead has none.

    Raises:
        ConfigError: If nothing was measured on the device, or the overhead is missing.
        StoreError: If the table is damaged.
    """

    name: ClassVar[str]
    phase: ClassVar[str]
    source: ClassVar[str] = MEASURED
    tick: ClassVar[float] = 1e-9

    def __init__(self, sketch: Sketch, workload: Workload) -> None:
        super().__init__(sketch, workload)
        self.mixed = workload.times == MIXED
        self.table = TimeTable.load(workload.device)
        self.roofline: Roofline | None = None
        if self.mixed:
            self.roofline = COSTS[self.name](sketch, workload)
        key = model_key(sketch, workload, self.phase)
        self.fitted = self.table.overheads.get(key)
        if self.fitted is None and not self.mixed:
            raise ConfigError(
                f"the overhead of {key.architecture} was not measured on {workload.device!r} for "
                f"{self._work}. Run: {self._command('')}, or allow scaled rooflines: --times "
                f"{MIXED}."
            )
        self.overhead = self.fitted or Overhead()
        self.error = self.overhead.error

    def fixed(self) -> int:
        """Return the overhead of the model."""
        return math.ceil(PICOSECONDS * self.overhead.fixed_s)

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the time of one weight or attention, or the overhead of a kept sub-block."""
        if self.sketch[site].kind == "subblock":
            if spec != DENSE:
                return 0
            attention = is_attention(self.sketch, site)
            kept = self.overhead.attention_s if attention else self.overhead.mlp_s
            return math.ceil(PICOSECONDS * kept)
        keys = site_ops(self.sketch, site, spec, self.workload, self.phase)
        missing = [key for key in keys if key not in self.table.times]
        if not missing:
            seconds = sum(self.table.times[key].seconds for key in keys)
        elif self.roofline is None:
            raise ConfigError(self._missing(missing[0], spec))
        else:
            floor = self.roofline.site(site, spec) / PICOSECONDS
            seconds = floor * self._over_roofline(missing[-1].op)
        return math.ceil(PICOSECONDS * self.overhead.scale * seconds)

    def source_of(self, plan: Plan) -> str:
        """Return ``measured``, or ``mixed`` where a part of a plan's time is modelled."""
        if not self.mixed:
            return MEASURED
        known = self.table.times.keys()
        whole = self.fitted is not None and all(
            set(site_ops(self.sketch, site, plan[site], self.workload, self.phase)) <= known
            for site in self.kept(plan)
        )
        return MEASURED if whole else MIXED

    def _over_roofline(self, op: str) -> float:
        """Return the median of measured time over roofline of an operation's kind."""
        ratios = self._ratios
        own = [ratio for kind, ratio in ratios if kind == op]
        if not ratios:
            raise ConfigError(
                f"the times of {self.workload.device!r} hold no operation to scale rooflines by. "
                f"Run: {self._command('')}."
            )
        return median(own or [ratio for _, ratio in ratios])

    @cached_property
    def _ratios(self) -> list[tuple[str, float]]:
        device = Device.named(self.workload.device)
        return [
            (key.op, time.seconds / device.seconds(time.size, time.flops))
            for key, time in self.table.times.items()
        ]

    @property
    def _work(self) -> str:
        return f"batch {self.workload.batch} and context {self.workload.context}"

    def _missing(self, key: OpKey, spec: LayerSpec) -> str:
        """Return what to do about an operation that was not measured."""
        shape = "×".join(map(str, key.shape))
        return (
            f"{key.op} {shape} as {spec.token()} was not measured on {self.workload.device!r} at "
            f"{key.rows} rows ({self._work}). Run: {self._command(f' --spec {spec.token()}')}, or "
            f"allow scaled rooflines: --times {MIXED}."
        )

    def _command(self, options: str) -> str:
        work = self.workload
        prefill = " --prefill" if self.phase == PREFILL else ""
        return (
            f"autocomp bench {self.sketch.model} --name {work.device} --batch {work.batch} "
            f"--context {work.context}{prefill}{options}"
        )


class MeasuredDecode(_Measured):
    """Milliseconds of one decoding step of the whole batch at the end of the context."""

    name: ClassVar[str] = DECODE_MS
    phase: ClassVar[str] = DECODE


class MeasuredPrefill(_Measured):
    """Milliseconds of reading the whole context of the whole batch at once."""

    name: ClassVar[str] = PREFILL_MS
    phase: ClassVar[str] = PREFILL


LOOKED_UP: dict[str, Callable[[Sketch, Workload], CostModel]] = {
    DECODE_MS: MeasuredDecode,
    PREFILL_MS: MeasuredPrefill,
}
"""The costs that are looked up unless times are modelled."""


def cost_model(name: str, sketch: Sketch, workload: Workload) -> CostModel:
    """Return a cost by name, from the source that the workload asks for.

    Raises:
        ConfigError: If the name or the device is unknown, or nothing was measured on it.
    """
    if name in LOOKED_UP and workload.times != MODELLED:
        return LOOKED_UP[name](sketch, workload)
    found: CostModel = COSTS[name](sketch, workload)
    return found
