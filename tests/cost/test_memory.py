from collections.abc import Callable
from dataclasses import replace

import pytest

from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost import (
    activation_bytes,
    cache_bytes,
    native_infos,
    peak_memory_bytes,
    workspace_bytes,
)
from autocomp.cost.memory import DECODED_AT_ONCE
from autocomp.kernels.dense_matmul import BLOCK_WEIGHTS
from autocomp.testing.plans import random_plan

BYPASS = LayerSpec.parse("bypass")
Make = Callable[[str], Sketch]


def test_values_by_hand(sketch_of_family: Make) -> None:
    sketch = sketch_of_family("llama")
    assert (sketch.num_kv_heads, sketch.head_dim, sketch.num_layers) == (2, 16, 2)
    cache = next(sketch.caches())
    found = cache_bytes(sketch, cache.name, DENSE, context=100, batch=3)
    assert found == 2 * 3 * 100 * 2 * 16 * 2
    # the widest input: 64 -> gate 128 + up 128, beside the residual stream of 64
    stream = 3 * 100 * (64 + 64 + 128 + 128) * 2
    assert activation_bytes(sketch, context=100, batch=3) == stream + 3 * sketch.vocab_size * 4


def test_is_weights_plus_cache_plus_activations(tiny_sketch: Sketch) -> None:
    plan = random_plan(tiny_sketch, 3, bypass=0.0)
    weights = sum(info.nbytes for info in native_infos(tiny_sketch, plan).values())
    found = peak_memory_bytes(tiny_sketch, plan, context=64, batch=2)
    cache = sum(
        cache_bytes(tiny_sketch, site.name, DENSE, context=64, batch=2)
        for site in tiny_sketch.caches()
    )
    running = activation_bytes(tiny_sketch, context=64, batch=2) + workspace_bytes(tiny_sketch)
    assert found == weights + cache + running


def test_workspace_is_a_block_of_the_kernels(tiny_sketch: Sketch) -> None:
    assert DECODED_AT_ONCE == BLOCK_WEIGHTS
    table = tiny_sketch.vocab_size * tiny_sketch.hidden_size
    assert workspace_bytes(tiny_sketch) == 7 * table  # below a block
    wide = replace(
        tiny_sketch,
        sites=tuple(
            replace(site, shape=(1 << 18, site.shape[1])) if site.kind == "embedding" else site
            for site in tiny_sketch.sites
        ),
    )
    assert workspace_bytes(wide) == 7 << 20


def test_a_bypassed_attention_holds_no_cache(tiny_sketch: Sketch) -> None:
    caches = list(tiny_sketch.caches())
    assert len(caches) == tiny_sketch.num_layers
    attention = tiny_sketch[tiny_sketch.owner[caches[0].name]]
    mlp = next(site for site in tiny_sketch.subblocks() if "mlp" in site.role)

    def memory(plan: Plan, context: int) -> int:
        return peak_memory_bytes(tiny_sketch, plan, context=context, batch=1)

    one = cache_bytes(tiny_sketch, caches[0].name, DENSE, context=900, batch=1)
    for site, saved in ((attention, one), (mlp, 0)):
        plan = Plan({site.name: BYPASS})
        long = memory(Plan({}), 1000) - memory(plan, 1000)
        short = memory(Plan({}), 100) - memory(plan, 100)
        assert long - short == saved


@pytest.mark.parametrize(("context", "batch"), [(10, 1), (10, 4), (400, 1)])
def test_monotone_in_context_and_batch(sketch_of_family: Make, context: int, batch: int) -> None:
    sketch = sketch_of_family("gpt2")
    base = peak_memory_bytes(sketch, Plan({}), context=context, batch=batch)
    assert base < peak_memory_bytes(sketch, Plan({}), context=context + 1, batch=batch)
    assert base < peak_memory_bytes(sketch, Plan({}), context=context, batch=batch + 1)


def test_a_compressed_cache_counts_what_its_method_stores(tiny_sketch: Sketch) -> None:
    context, batch = 1000, 3
    spec = LayerSpec.parse("kivi-k2v2")
    first, *_ = tiny_sketch.caches()
    full = cache_bytes(tiny_sketch, first.name, DENSE, context=context, batch=batch)
    found = cache_bytes(tiny_sketch, first.name, spec, context=context, batch=batch)
    group = max(size for size in range(1, 33) if tiny_sketch.head_dim % size == 0)
    stored = 896 * (2 + 32 / 32) + 872 * (2 + 32 / group)  # bits of the keys, and of the values
    latest = (104 + 128) * 16
    assert found == batch * tiny_sketch.num_kv_heads * tiny_sketch.head_dim * (stored + latest) / 8
    plan = Plan({first.name: spec})
    saved = peak_memory_bytes(
        tiny_sketch, Plan({}), context=context, batch=batch
    ) - peak_memory_bytes(tiny_sketch, plan, context=context, batch=batch)
    assert saved == full - found
