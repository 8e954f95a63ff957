"""Costs by name: sums over sites, and a roofline by hand."""

from collections.abc import Callable

import pytest

from autocomp.core.cost import (
    DECODE_MS,
    FLOPS,
    LIMITS,
    PEAK_MEMORY_BYTES,
    PREFILL_MS,
    WEIGHT_BYTES,
    format_cost,
    option_of,
    shown,
    title_of,
)
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.registry import COSTS
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.cost import (
    Device,
    Roofline,
    Workload,
    decode_flops,
    device_names,
    is_bypassed,
    peak_memory_bytes,
    prefill_flops,
    weight_bytes,
)
from autocomp.testing.plans import random_plan

WORK = Workload(context=40, batch=3, device="h100")
DOWN = "model.layers.0.mlp.down_proj"
H100_BYTES, H100_FLOPS = 3.35e12, 989.4e12
GETTERS = {
    WEIGHT_BYTES: weight_bytes,
    PEAK_MEMORY_BYTES: lambda sketch, plan: peak_memory_bytes(sketch, plan, context=40, batch=3),
    FLOPS: lambda sketch, plan: decode_flops(sketch, plan, context=40),
}


def test_the_table_has_a_limit_each() -> None:
    assert list(COSTS) == list(LIMITS)
    assert {COSTS[name].name: COSTS[name].source for name in COSTS} == {
        WEIGHT_BYTES: "exact",
        PEAK_MEMORY_BYTES: "exact",
        DECODE_MS: "modelled",
        PREFILL_MS: "modelled",
        FLOPS: "exact",
    }


@pytest.mark.parametrize("name", list(COSTS))
@pytest.mark.parametrize("seed", range(3))
def test_a_plan_costs_at_most_what_its_sites_add_up_to(
    name: str, seed: int, tiny_sketch: Sketch
) -> None:
    plan, model = random_plan(tiny_sketch, seed, bypass=0.3), COSTS[name](tiny_sketch, WORK)
    kept = [s.name for s in tiny_sketch.sites if not is_bypassed(tiny_sketch, plan, s.name)]
    bound = model.fixed() + sum(model.site(site, plan[site]) for site in kept)
    predicted = model.predict(plan)
    if name == WEIGHT_BYTES:
        assert predicted <= bound
    else:
        assert predicted == bound
    if name in GETTERS:
        assert predicted == GETTERS[name](tiny_sketch, plan)


def test_a_roofline_by_hand(sketch_of_family: Callable[[str], Sketch]) -> None:
    """A weight of 64 × 128 in 16 bits: its bytes bind at batch 1, its operations at 4096."""
    sketch = sketch_of_family("llama")
    dense = LayerSpec()
    assert sketch[DOWN].shape == (64, 128)
    picoseconds = {
        1: 1e12 * 2 * 64 * 128 / H100_BYTES,
        4096: 1e12 * 4096 * 2 * 64 * 128 / H100_FLOPS,
    }
    for batch, expected in picoseconds.items():
        model = COSTS[DECODE_MS](sketch, Workload(context=8, batch=batch, device="h100"))
        assert model.site(DOWN, dense) == pytest.approx(expected, abs=1)
    assert COSTS[DECODE_MS].tick * 1e9 == 1


def test_a_prefill_does_the_operations_of_the_whole_context(
    tiny_sketch: Sketch,
) -> None:
    plan = random_plan(tiny_sketch, 1, bypass=0.3)
    model = COSTS[PREFILL_MS](tiny_sketch, WORK)
    assert isinstance(model, Roofline)
    expected = WORK.batch * prefill_flops(tiny_sketch, plan, context=WORK.context)
    assert model.flops(plan) == expected
    decode = COSTS[DECODE_MS](tiny_sketch, WORK)
    assert isinstance(decode, Roofline)
    assert decode.flops(plan) == WORK.batch * decode_flops(tiny_sketch, plan, context=WORK.context)
    assert model.predict(plan) > decode.predict(plan)
    assert model.intensity(plan) > decode.intensity(plan)


def test_intensity_is_operations_a_byte_that_is_read(
    sketch_of_family: Callable[[str], Sketch],
) -> None:
    """Dense at batch 1: every stored number is read once, two bytes for two operations."""
    sketch = sketch_of_family("llama")
    model = COSTS[DECODE_MS](sketch, Workload(context=1, batch=1, device="h100"))
    assert isinstance(model, Roofline)
    assert model.intensity(Plan({})) == pytest.approx(1, rel=0.1)
    packed = Plan({s.name: LayerSpec.parse("rtn-w4g64") for s in sketch.weights()})
    assert 3 < model.intensity(packed) < 4


def test_few_bits_decode_faster_and_a_bypass_fastest(
    sketch_of_family: Callable[[str], Sketch],
) -> None:
    sketch = sketch_of_family("llama")
    model = COSTS[DECODE_MS](sketch, WORK)
    sites = [site.name for site in sketch.weights() if site.kind == "linear"]
    plans = [Plan({site: LayerSpec.parse(token) for site in sites})
             for token in ("dense", "rtn-w8g16", "rtn-w4g16")]  # fmt: skip
    dropped = Plan({s.name: LayerSpec.parse("bypass") for s in sketch.subblocks()})
    times = [model.predict(plan) for plan in (*plans, dropped)]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 4


def test_an_embedding_of_its_own_is_read_a_row_a_sequence(
    sketch_of_family: Callable[[str], Sketch],
) -> None:
    untied = sketch_of_family("gpt-neox")
    embedding = next(site for site in untied.sites if site.kind == "embedding")
    head = next(site for site in untied.sites if site.kind == "head")
    model = COSTS[DECODE_MS](untied, WORK)
    row = 2 * embedding.shape[1]
    assert model.site(embedding.name, LayerSpec()) == pytest.approx(
        1e12 * WORK.batch * row / H100_BYTES, abs=1
    )
    whole = 2 * head.shape[0] * head.shape[1]
    assert model.site(head.name, LayerSpec()) == pytest.approx(1e12 * whole / H100_BYTES, abs=1)


def test_slower_memory_takes_longer(sketch_of_family: Callable[[str], Sketch]) -> None:
    sketch = sketch_of_family("llama")
    times = {
        device: COSTS[DECODE_MS](sketch, Workload(8, 1, device)).predict(Plan({}))
        for device in device_names()
    }
    order = sorted(times, key=lambda d: Device.named(d).memory_bandwidth_bytes_per_s)
    assert sorted(times, key=times.__getitem__, reverse=True) == order


def test_devices_are_read_from_their_files_with_a_source() -> None:
    known = {"a100", "h100", "h200", "l4", "m1", "m1-max", "rtx3090", "rtx4090"}
    assert known == set(device_names())
    assert Device.named("h100").memory_bandwidth_bytes_per_s == H100_BYTES
    for name in device_names():
        device = Device.named(name)
        assert "https://" in device.source
        # Flops a byte: cards balance at a hundred and more, processors with a GPU at less.
        ridge = device.peak_flops_per_s / device.memory_bandwidth_bytes_per_s
        assert (20 if name.startswith("m1") else 70) < ridge < 500


@pytest.mark.parametrize(
    ("name", "value", "text", "drawn"),
    [
        (WEIGHT_BYTES, 79_800_000, "79.8 MB", 79.8),
        (PEAK_MEMORY_BYTES, 8_000_000_000, "8.0 GB", 8000),
        (DECODE_MS, 1.25, "1.25 ms", 1.25),
        (PREFILL_MS, 80.0, "80 ms", 80.0),
        (FLOPS, 269_100_000, "269.1 MFLOP", 269.1),
    ],
)
def test_costs_as_people_read_them(name: str, value: float, text: str, drawn: float) -> None:
    assert format_cost(name, value) == text
    assert shown(name, value) == pytest.approx(drawn)
    assert option_of(name) == f"--{LIMITS[name]}".replace("_", "-")
    assert title_of(name).partition(", ")[2]
    assert title_of(name, "exact") == title_of(name)
    assert title_of(name, "measured") == f"{title_of(name)} (measured)"


def test_an_unknown_device_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'h10'.*'h100'.*--cost-device"):
        Device.named("h10")
