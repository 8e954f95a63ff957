"""Times of operations alone: which format, at which shape and batch, takes how long here.

Weights are random, in the format of a spec, inside the modules that a loaded model has. Every case
runs on as many copies of its weight as do not fit the caches, since a model comes back to a weight
only after all others; all formats of one operation are timed in turns, the dense one with them.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from autocomp.core.errors import PlanError, UnsupportedError
from autocomp.core.registry import load_object
from autocomp.core.sketch import SiteKind, Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.device import Device
from autocomp.cost.models import Workload
from autocomp.cost.ops import site_ops
from autocomp.cost.times import (
    EMBEDDING,
    LINEAR,
    PREFILL,
    TIED_HEAD,
    Conditions,
    OpKey,
    OpTime,
    form_of,
)
from autocomp.evaluate.forms import Forms
from autocomp.evaluate.record import hardware, versions
from autocomp.evaluate.timing import REPEATS, Call, interleaved
from autocomp.layers.cache import CompressedLayer
from autocomp.layers.linear import TiedHead, site_embedding, site_linear

COLD_BYTES = 64 * 2**20
MOST_COPIES = 256
PACKAGES = ("autocomp", "torch", "transformers")

SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "smollm2": ((576, 576), (192, 576), (1536, 576), (576, 1536), (49152, 576)),
    "llama3-8b": ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)),
}
"""Shapes (out, in) of the linears of known models, by name; of Llama 3 8B without the head."""


@dataclass(frozen=True, slots=True)
class Case:
    """An operation and the spec that it is timed with."""

    key: OpKey
    spec: LayerSpec


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the bench.

    Args:
        op: Kind of operation.
        shape: As in :class:`~autocomp.cost.times.OpKey`.
        spec: Token.
        rows: Vectors that go through at once.
        context: Tokens that an attention attends to; 0 for a weight.
        median_ms: Time, milliseconds.
        noise: Half the interquartile range over the median.
        repeats: Samples.
        size: Bytes read.
        floor_ms: Those bytes over the device's bandwidth, milliseconds.
        over_floor: Time over that floor.
        over_dense: Time over that of the dense weight in the same run.
    """

    op: str
    shape: tuple[int, ...]
    spec: str
    rows: int
    context: int
    median_ms: float
    noise: float
    repeats: int
    size: int
    floor_ms: float
    over_floor: float
    over_dense: float

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def conditions(device: torch.device, dtype: torch.dtype) -> Conditions:
    """Return what the times of this process depend on besides the device's name."""
    known = versions()
    return Conditions(
        hardware=hardware(device),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        versions={name: known[name] for name in PACKAGES},
    )


def cases_of_model(
    sketch: Sketch, specs: Sequence[LayerSpec], workload: Workload, phase: str
) -> list[Case]:
    """Return the different operations of a model under some specs, the dense ones included.

    Args:
        sketch: The model.
        specs: Of weights and of caches; each goes to the sites that it applies to, if it fits.
        workload: Context and batch.
        phase: ``decode`` or ``prefill``.
    """
    found: dict[OpKey, Case] = {}
    for site in sketch.sites:
        if site.kind == "subblock":
            continue
        for spec in (DENSE, *specs):
            if spec == DENSE or applies(spec, site.kind, site.shape):
                for key in site_ops(sketch, site.name, spec, workload, phase):
                    found.setdefault(key, Case(key, spec))
    return list(found.values())


def applies(spec: LayerSpec, kind: SiteKind, shape: tuple[int, int]) -> bool:
    """Return whether a spec goes with a site of a kind and a shape."""
    try:
        load_object("autocomp.methods.compose:check")(spec, kind, shape)
    except (PlanError, UnsupportedError):
        return False
    return True


def cases_of_shapes(
    shapes: Sequence[tuple[int, int]], specs: Sequence[LayerSpec], rows: Sequence[int], dtype: str
) -> list[Case]:
    """Return linears of some shapes under every spec that fits, the dense one included.

    Args:
        shapes: (out, in) each.
        specs: Of weights.
        rows: Vectors that go through at once, each a case.
        dtype: Dtype of uncompressed values in files.
    """
    layout = load_object("autocomp.methods.compose:layout")
    return [
        Case(OpKey(LINEAR, shape, form_of(layout(spec, shape, dtype).to_json()), count), spec)
        for shape in shapes
        for count in rows
        for spec in dict.fromkeys((DENSE, *specs))
        if spec == DENSE or applies(spec, "linear", shape)
    ]


class OpBench:
    """Times operations on one device.

    Args:
        device: Where.
        dtype: Compute dtype.
        forms: Random weights.
        repeats: Samples a case.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, forms: Forms, repeats: int = REPEATS
    ) -> None:
        self.device, self.dtype = device, dtype
        self._forms, self._repeats = forms, repeats

    def run(self, cases: Iterable[Case]) -> Iterator[dict[OpKey, OpTime]]:
        """Yield the times of the cases that are one operation at one size, in turns.

        Args:
            cases: Different ones; those of one operation, shape, rows and context are compared.
        """
        shape: tuple[int, ...] = ()
        for _, group in groupby(sorted(cases, key=_together), key=_together):
            together = list(group)
            if together[0].key.shape != shape:
                self._forms.forget()
            shape = together[0].key.shape
            made = [self._made(case) for case in together]
            timings = interleaved(
                [calls for calls, _, _ in made], self.device, repeats=self._repeats
            )
            yield {
                case.key: OpTime(t.seconds, t.noise, t.repeats, size, flops, case.spec.token())
                for case, t, (_, size, flops) in zip(together, timings, made, strict=True)
            }

    def _made(self, case: Case) -> tuple[list[Call], int, int]:
        """Return the calls of a case, the bytes that one reads, and its operations."""
        if case.key.op in (LINEAR, EMBEDDING, TIED_HEAD):
            return self._weight(case)
        return self._attention(case)

    def _weight(self, case: Case) -> tuple[list[Call], int, int]:
        key = case.key
        shape = (key.shape[0], key.shape[1])
        weight = self._forms.weight(case.spec, shape)
        copies = _copies(weight.nbytes)
        calls: list[Call] = []
        for index in range(copies):
            own = weight if index == 0 else self._forms.weight(case.spec, shape)
            own = own.to(self.device)
            if key.op == LINEAR:
                module = site_linear(own, None, self.dtype)
            else:
                table = nn.Embedding(*shape, device="meta")
                module = site_embedding(own, table, self.dtype)
            if key.op == TIED_HEAD:
                module = TiedHead(module)
            calls.append(partial(module.eval(), self._inputs(key)))
        if key.op == EMBEDDING:
            return calls, weight.nbytes * min(key.rows, shape[0]) // shape[0], 0
        return calls, weight.nbytes, 2 * key.rows * weight.layout.multiply_adds

    def _inputs(self, key: OpKey) -> torch.Tensor:
        """Return tokens (rows, 1) of a look-up, else vectors (rows, 1, in)."""
        if key.op == EMBEDDING:
            return torch.randint(key.shape[0], (key.rows, 1), device=self.device)
        inputs = torch.randn(key.rows, 1, key.shape[1], device=self.device)
        return inputs.to(self.dtype)

    def _attention(self, case: Case) -> tuple[list[Call], int, int]:
        key = case.key
        heads, kv_heads, width = key.shape
        whole = key.op.startswith(PREFILL)
        queries = key.context if whole else 1
        batch = key.rows // queries

        def states(count: int, tokens: int) -> torch.Tensor:
            found = torch.randn(batch, count, tokens, width, device=self.device)
            return found.to(self.dtype)

        size = 2 * batch * kv_heads * key.context * width * self.dtype.itemsize
        attention = nn.Module()
        attention.num_key_value_groups = heads // kv_heads  # type: ignore[assignment]
        query, new = states(heads, queries), states(kv_heads, queries)
        calls: list[Call] = []
        for _ in range(_copies(size)):
            layer = DynamicLayer() if case.spec == DENSE else CompressedLayer(case.spec.cache)
            if key.context > queries:
                before = states(kv_heads, key.context - queries)
                layer.update(before, before.clone())
            calls.append(partial(_attend, attention, layer, query, new))
        pairs = queries * key.context - queries * (queries - 1) // 2
        return calls, size, 4 * batch * heads * width * pairs


def _attend(
    attention: nn.Module, layer: DynamicLayer, query: torch.Tensor, new: torch.Tensor
) -> torch.Tensor:
    """Append tokens to a copy of a cache and attend to all of it."""
    keys, values = copy(layer).update(new, new)
    found: torch.Tensor = sdpa_attention_forward(attention, query, keys, values, None)[0]
    return found


def _together(case: Case) -> tuple[str, tuple[int, ...], int, int]:
    """Return what cases that are compared share."""
    return case.key.op, case.key.shape, case.key.rows, case.key.context


def _copies(size: int) -> int:
    """Return how many operands of a size do not fit the caches together."""
    return max(1, min(MOST_COPIES, -(-COLD_BYTES // max(1, size))))


def rows_of(times: dict[OpKey, OpTime], device: Device) -> list[Row]:
    """Return the lines of operations that were timed together.

    Args:
        times: Of one operation at one size, the dense form among them.
        device: What the floors are of.
    """
    dense = next(time.seconds for time in times.values() if time.spec == DENSE.token())
    return [
        Row(
            op=key.op,
            shape=key.shape,
            spec=time.spec,
            rows=key.rows,
            context=key.context,
            median_ms=1e3 * time.seconds,
            noise=time.noise,
            repeats=time.repeats,
            size=time.size,
            floor_ms=1e3 * (floor := device.seconds(time.size, 0)),
            over_floor=time.seconds / floor,
            over_dense=time.seconds / dense,
        )
        for key, time in times.items()
    ]
