"""Costs of plans by name, each a sum over sites, so that a knapsack can be solved in it.

A cost counts whole *ticks* of a stated size. The roofline takes the larger of the time to read
what a site stores and the time to multiply with it, at a device's peak figures: a floor of what
any program reaches, good for comparing plans.

Reference: Williams, Waterman and Patterson 2009, Roofline,
https://doi.org/10.1145/1498765.1498785
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from autocomp.core.cost import DECODE_MS, FLOPS, PEAK_MEMORY_BYTES, WEIGHT_BYTES
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
from autocomp.cost.memory import activation_bytes, cache_bytes

Source = Literal["exact", "modelled", "measured"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What a model is used for.

    Args:
        context: Tokens a sequence, those in the cache included.
        batch: Sequences at a time.
        device: Name of the device that times are of.
    """

    context: int
    batch: int
    device: str


class CostModel(Protocol):
    """One cost of the plans of one model; made of a sketch and a workload."""

    name: ClassVar[str]
    """Its name in settings and files."""

    source: ClassVar[Source]
    """Whether it is known from shapes, modelled, or looked up in measurements."""

    tick: ClassVar[float]
    """Size of a tick in the unit of the name."""

    def __init__(self, sketch: Sketch, workload: Workload) -> None: ...

    def fixed(self) -> int:
        """Return the ticks that no decision changes."""

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the ticks of one site; what else a sub-block has counts while it is kept."""

    def predict(self, plan: Plan) -> int:
        """Return the ticks of a plan: at most :meth:`fixed` and the sum over what it keeps."""


class _Additive:
    """A cost that is exactly what its sites add up to."""

    tick: ClassVar[float] = 1

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
        kept = (s.name for s in self.sketch.sites if not is_bypassed(self.sketch, plan, s.name))
        return self.fixed() + sum(self.site(name, plan[name]) for name in kept)


class WeightBytes(_Additive):
    """Size of the weight file, exact to the byte; sites count with room for their header."""

    name: ClassVar[str] = WEIGHT_BYTES
    source: ClassVar[Source] = "exact"

    def fixed(self) -> int:
        """Return the bytes of what no decision changes."""
        return fixed_bytes(self.sketch)

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return an upper bound of the share of one site."""
        return site_bytes(self.sketch, site, spec)

    def predict(self, plan: Plan) -> int:
        """Return the size of the file."""
        return weight_bytes(self.sketch, plan)


class PeakMemoryBytes(_Additive):
    """Weights, keys and values, and activations of a run on packed weights."""

    name: ClassVar[str] = PEAK_MEMORY_BYTES
    source: ClassVar[Source] = "exact"

    def fixed(self) -> int:
        """Return the bytes of activations and of weights that no decision changes."""
        work = self.workload
        activations = activation_bytes(self.sketch, context=work.context, batch=work.batch)
        return activations + fixed_data_bytes(self.sketch)

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the bytes of one weight or cache."""
        if self.sketch[site].kind != "cache":
            return site_data_bytes(self.sketch, site, spec)
        work = self.workload
        return cache_bytes(self.sketch, site, spec, context=work.context, batch=work.batch)


class Flops(_Additive):
    """Operations of decoding one token of one sequence at the end of the context."""

    name: ClassVar[str] = FLOPS
    source: ClassVar[Source] = "exact"

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the operations with one weight, or of one attention."""
        return site_flops(self.sketch, site, spec, context=self.workload.context)


class RooflineDecode(_Additive):
    """Milliseconds of one decoding step of the whole batch, by a roofline a site.

    ``Σ max(bytes / bandwidth, batch · flops / peak)`` over weights, which are read once a step,
    attentions, which read their keys and values, and the rest, which is read. An embedding is read
    a row a sequence, a tied one whole for the head. Packed weights are taken to be decoded on the
    fly and multiplied in 16 bits, launches and synchronisation to cost nothing.

    Reference: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785
    """

    name: ClassVar[str] = DECODE_MS
    source: ClassVar[Source] = "modelled"
    tick: ClassVar[float] = 1e-9

    def __init__(self, sketch: Sketch, workload: Workload) -> None:
        super().__init__(sketch, workload)
        self.device = Device.named(workload.device)
        self.memory = PeakMemoryBytes(sketch, workload)
        self.flops = Flops(sketch, workload)

    def fixed(self) -> int:
        """Return the time to read the weights that no decision changes."""
        return self._ticks(fixed_data_bytes(self.sketch), 0)

    def site(self, site: str, spec: LayerSpec) -> int:
        """Return the time of one weight or one attention."""
        size, flops = self.memory.site(site, spec), self.flops.site(site, spec)
        if self.sketch[site].kind == "embedding" and flops == 0:
            size = size * self.workload.batch // self.sketch.vocab_size
        return self._ticks(size, self.workload.batch * flops)

    def _ticks(self, size: int, flops: int) -> int:
        """Return the time of reading bytes and of operations, whichever is longer."""
        reading = size / self.device.memory_bandwidth_bytes_per_s
        return math.ceil(1e12 * max(reading, flops / self.device.peak_flops_per_s))
