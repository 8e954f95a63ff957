"""Costs of plans by name, each a sum over sites, so that a knapsack can be solved in it.

A cost counts whole *ticks* of a stated size. The roofline takes the larger of the time to read
what a site stores and the time to multiply with it, at a device's peak figures: a floor of what
any program reaches, good for comparing plans.

Reference: Williams, Waterman and Patterson 2009, Roofline,
https://doi.org/10.1145/1498765.1498785
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from autocomp.core.cost import (
    DECODE_MS,
    EXACT,
    FLOPS,
    MODELLED,
    PEAK_MEMORY_BYTES,
    PREFILL_MS,
    WEIGHT_BYTES,
)
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.cost.bytes import (
    fixed_bytes,
    fixed_data_bytes,
    is_bypassed,
    site_bytes,
    site_data_bytes,
    weight_bytes,
)
from autocomp.cost.device import Device
from autocomp.cost.flops import site_flops
from autocomp.cost.memory import activation_bytes, cache_bytes, workspace_bytes


@dataclass(frozen=True, slots=True)
class Workload:
    """What a model is used for.

    Args:
        context: Tokens a sequence, those in the cache included.
        batch: Sequences at a time.
        device: Name of the device that times are of.
        times: Where times come from: ``modelled``, ``measured`` or ``mixed``.
    """

    context: int
    batch: int
    device: str
    times: str = MODELLED


class CostModel(Protocol):
    """One cost of the plans of one model; made of a sketch and a workload."""

    name: ClassVar[str]
    """Its name in settings and files."""

    source: ClassVar[str]
    """Where its values come from: one of ``autocomp.core.cost.SOURCES``."""

    tick: ClassVar[float]
    """Size of a tick in the unit of the name."""

    error: float
    """Relative error that its values are known to have; limits keep it as a margin."""

    def __init__(self, sketch: Sketch, workload: Workload) -> None: ...

    def fixed(self) -> int:
        """Return the ticks that no decision changes."""

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the ticks of one site; what else a sub-block has counts while it is kept."""

    def predict(self, plan: Plan) -> int:
        """Return the ticks of a plan: at most :meth:`fixed` and the sum over what it keeps."""

    def source_of(self, plan: Plan) -> str:
        """Return where the cost of one plan comes from."""


class Additive:
    """A cost that is exactly what its sites add up to."""

    source: ClassVar[str] = EXACT
    tick: ClassVar[float] = 1
    error: float = 0.0

    def __init__(self, sketch: Sketch, workload: Workload) -> None:
        self.sketch = sketch
        self.workload = workload

    def fixed(self) -> int:
        """Return the ticks that no decision changes."""
        return 0

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the ticks of one site."""
        raise NotImplementedError

    def predict(self, plan: Plan) -> int:
        """Return the ticks of a plan."""
        return self.fixed() + sum(self.site(name, plan[name]) for name in self.kept(plan))

    def kept(self, plan: Plan) -> list[str]:
        """Return the sites that lie in no sub-block that a plan bypasses."""
        return [s.name for s in self.sketch.sites if not is_bypassed(self.sketch, plan, s.name)]

    def source_of(self, plan: Plan) -> str:
        """Return where the cost of one plan comes from."""
        return self.source


class WeightBytes(Additive):
    """Size of the weight file, exact to the byte; sites count with room for their header."""

    name: ClassVar[str] = WEIGHT_BYTES

    def fixed(self) -> int:
        """Return the bytes of what no decision changes."""
        return fixed_bytes(self.sketch)

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return an upper bound of the share of one site."""
        return site_bytes(self.sketch, site, spec)

    def predict(self, plan: Plan) -> int:
        """Return the size of the file."""
        return weight_bytes(self.sketch, plan)


class PeakMemoryBytes(Additive):
    """Weights, keys and values, and activations of a run on packed weights."""

    name: ClassVar[str] = PEAK_MEMORY_BYTES

    def fixed(self) -> int:
        """Return the bytes of what runs, and of weights that no decision changes."""
        work = self.workload
        activations = activation_bytes(self.sketch, context=work.context, batch=work.batch)
        return activations + workspace_bytes(self.sketch) + fixed_data_bytes(self.sketch)

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the bytes of one weight or cache."""
        if self.sketch[site].kind != "cache":
            return site_data_bytes(self.sketch, site, spec)
        work = self.workload
        return cache_bytes(self.sketch, site, spec, context=work.context, batch=work.batch)


class Flops(Additive):
    """Operations of decoding one token of one sequence at the end of the context."""

    name: ClassVar[str] = FLOPS

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the operations with one weight, or of one attention."""
        return site_flops(self.sketch, site, spec, context=self.workload.context)


class Roofline(Additive):
    """Milliseconds by a roofline a site: ``Σ max(bytes / bandwidth, operations / peak)``.

    Packed weights are taken to be decoded on the fly and multiplied in 16 bits, launches and
    synchronisation to cost nothing. Weights that no decision changes are read.

    Reference: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785
    """

    source: ClassVar[str] = MODELLED
    tick: ClassVar[float] = 1e-9

    def __init__(self, sketch: Sketch, workload: Workload) -> None:
        super().__init__(sketch, workload)
        self.device = Device.named(workload.device)
        self.memory = PeakMemoryBytes(sketch, workload)

    @property
    def rows(self) -> int:
        """Tokens that go through the blocks at once."""
        raise NotImplementedError

    def operations(self, site: str, spec: LayerSpec) -> int:
        """Return the operations of one site on all rows."""
        raise NotImplementedError

    def reads(self, site: str, spec: LayerSpec) -> int:
        """Return the bytes that one site reads: an embedding a row a token, a tied one whole."""
        size = self.memory.site(site, spec)
        if self.sketch[site].kind == "embedding" and self.operations(site, spec) == 0:
            return size * min(self.rows, self.sketch.vocab_size) // self.sketch.vocab_size
        return size

    def fixed(self) -> int:
        """Return the time to read the weights that no decision changes."""
        return self._ticks(fixed_data_bytes(self.sketch), 0)

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the time of one weight or one attention."""
        return self._ticks(self.reads(site, spec), self.operations(site, spec))

    def intensity(self, plan: Plan) -> float:
        """Return the operations of a plan a byte that it reads."""
        size = sum(self.reads(name, plan[name]) for name in self.kept(plan))
        return self.flops(plan) / (fixed_data_bytes(self.sketch) + size)

    def flops(self, plan: Plan) -> int:
        """Return the operations of a plan on all rows."""
        return sum(self.operations(name, plan[name]) for name in self.kept(plan))

    def _ticks(self, size: int, flops: int) -> int:
        return math.ceil(1e12 * self.device.seconds(size, flops))


class RooflineDecode(Roofline):
    """Milliseconds of one decoding step of the whole batch at the end of the context.

    Weights are read once a step, attentions read their keys and values.
    """

    name: ClassVar[str] = DECODE_MS

    @property
    def rows(self) -> int:
        """One token a sequence."""
        return self.workload.batch

    def operations(self, site: str, spec: LayerSpec) -> int:
        """Return the operations of one site for one token of every sequence."""
        work = self.workload
        return work.batch * site_flops(self.sketch, site, spec, context=work.context)


class RooflinePrefill(Roofline):
    """Milliseconds of reading the whole context of the whole batch at once.

    Token t attends to t tokens, keys and values move once, and the logits are those of the last
    token of every sequence.
    """

    name: ClassVar[str] = PREFILL_MS

    @property
    def rows(self) -> int:
        """All tokens of every sequence."""
        return self.workload.batch * self.workload.context

    def operations(self, site: str, spec: LayerSpec) -> int:
        """Return the operations of one site for all tokens of every sequence."""
        context, kind = self.workload.context, self.sketch[site].kind
        times = {"linear": context, "cache": context * (context + 1) // 2}.get(kind, 1)
        flops = site_flops(self.sketch, site, spec, context=1)
        return self.workload.batch * times * flops
