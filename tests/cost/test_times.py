"""Measured times: round trip, damage, missing entries, and the overhead's fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocomp.core.cost import DECODE_MS, PREFILL_MS
from autocomp.core.errors import ConfigError, StoreError
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.cost import Device, Workload, cost_model, device_names
from autocomp.cost.ops import is_attention, model_key, plan_ops, site_ops
from autocomp.cost.overhead import ModelRun, fit_overhead, predicted_s
from autocomp.cost.times import (
    DECODE,
    PREFILL,
    Conditions,
    ModelKey,
    OpKey,
    OpTime,
    Overhead,
    TimeTable,
    path_of,
)
from autocomp.testing.plans import random_plan

WORK = Workload(context=40, batch=3, device="bench-test", times="measured")
CONDITIONS = Conditions("a processor", "float32", 2, {"torch": "2.13"})
OVERHEAD = Overhead(1.25, 1e-3, 2e-4, 3e-4, 9, 0.01)
KEY = OpKey("linear", (64, 128), "0123456789abcdef", 3)
TIME = OpTime(2e-6, 0.03, 15, 4096, 8192, "rtn-w4g16")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path / "cache"))


def table_of(sketch: Sketch, plans: list[Plan], work: Workload = WORK) -> TimeTable:
    """Return a table in which every operation of some plans takes a time of its own."""
    keys = {
        key
        for plan in plans
        for phase in (DECODE, PREFILL)
        for key in plan_ops(sketch, plan, work, phase)[0]
    }
    ordered = sorted(keys, key=repr)
    times = {key: replace(TIME, seconds=1e-6 * (1 + place)) for place, key in enumerate(ordered)}
    overheads = {model_key(sketch, work, phase): OVERHEAD for phase in (DECODE, PREFILL)}
    return TimeTable(work.device, CONDITIONS, times, overheads)


def save_device(name: str = WORK.device) -> None:
    Device("this one", 1e10, 1e11, "measured by a test").save(name)


def test_a_table_comes_back_as_it_was() -> None:
    key = ModelKey("llama-64", DECODE, 3, 40)
    table = TimeTable("bench-test", CONDITIONS).with_times({KEY: TIME})
    table = table.with_overhead(key, OVERHEAD)
    path = table.save()
    assert TimeTable.load("bench-test") == table
    assert [item.name for item in path.parent.iterdir()] == ["bench-test.json"]
    newer = replace(TIME, seconds=1e-6)
    assert table.with_times({KEY: newer}).times == {KEY: newer}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("2e-06", "1e-06"),
        lambda text: "[]",
        lambda text: json.dumps({"sha256": "", "content": {}}),
    ],
)
def test_a_damaged_table_is_noticed(damage: Callable[[str], str]) -> None:
    path = TimeTable("bench-test", CONDITIONS).with_times({KEY: TIME}).save()
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(StoreError, match=r"damaged.*autocomp bench MODEL --name bench-test"):
        TimeTable.load("bench-test")


def test_a_table_stands_for_one_set_of_conditions() -> None:
    TimeTable("bench-test", CONDITIONS).with_times({KEY: TIME}).save()
    assert TimeTable.open("bench-test", CONDITIONS).times == {KEY: TIME}
    with pytest.raises(ConfigError, match=r"other conditions.*--fresh"):
        TimeTable.open("bench-test", replace(CONDITIONS, threads=1))
    assert not path_of("other").exists()
    assert TimeTable.open("other", CONDITIONS).times == {}


@pytest.mark.parametrize("name", [DECODE_MS, PREFILL_MS])
def test_a_measured_time_is_operations_times_scale_and_what_sub_blocks_add(
    name: str, sketch_of_family: Callable[[str], Sketch]
) -> None:
    sketch = sketch_of_family("llama")
    dropped = ["model.layers.0.self_attn", "model.layers.1.mlp"]
    layers = dict(random_plan(sketch, 4, bypass=0.0).layers)
    plan = Plan(layers | dict.fromkeys(dropped, LayerSpec.parse("bypass")))
    table = table_of(sketch, [plan, Plan({})])
    table.save()
    model = cost_model(name, sketch, WORK)
    phase = DECODE if name == DECODE_MS else PREFILL
    ops, attentions, mlps = plan_ops(sketch, plan, WORK, phase)
    assert (attentions, mlps) == (1, 1)
    run = ModelRun(sum(table.times[key].seconds for key in ops), attentions, mlps, 1.0)
    assert model.predict(plan) * model.tick == pytest.approx(1e3 * predicted_s(OVERHEAD, run))
    assert model.source_of(plan) == "measured"
    gone = {member for name in dropped for member in (name, *sketch[name].members)}
    parts = [model.site(s.name, plan[s.name]) for s in sketch.sites if s.name not in gone]
    assert model.predict(plan) == model.fixed() + sum(parts)


def test_methods_that_store_alike_are_one_entry(
    sketch_of_family: Callable[[str], Sketch],
) -> None:
    sketch, site = sketch_of_family("llama"), "model.layers.0.mlp.down_proj"
    keys = [
        site_ops(sketch, site, LayerSpec.parse(token), WORK, DECODE)
        for token in ("rtn-w4g16", "gptq-w4g16", "rtn-w4g32", "dense")
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    embedding = next(s.name for s in sketch.sites if s.kind == "embedding")
    ops = site_ops(sketch, embedding, LayerSpec(), WORK, PREFILL)
    assert [(key.op, key.rows) for key in ops] == [("embedding", 120), ("tied-head", 3)]
    kinds = [is_attention(sketch, s.name) for s in sketch.subblocks()]
    assert kinds == [True, False] * 2


def test_what_was_not_measured_is_an_error_that_says_what_to_run(
    sketch_of_family: Callable[[str], Sketch],
) -> None:
    sketch = sketch_of_family("llama")
    with pytest.raises(ConfigError, match=r"no times were measured on the device 'bench-test'"):
        cost_model(DECODE_MS, sketch, WORK)
    table = table_of(sketch, [Plan({})])
    replace(table, overheads={}).save()
    with pytest.raises(ConfigError, match=r"overhead of llama-64 .*Run: autocomp bench .*tiny"):
        cost_model(DECODE_MS, sketch, WORK)
    table.save()
    model, site = cost_model(DECODE_MS, sketch, WORK), "model.layers.0.mlp.down_proj"
    assert model.site(site, LayerSpec()) > 0
    with pytest.raises(
        ConfigError,
        match=r"linear 64×128 as rtn-w3g32 .*--name bench-test --batch 3 --context 40 "
        r"--spec rtn-w3g32, or .*--times mixed",
    ):
        model.site(site, LayerSpec.parse("rtn-w3g32"))


def test_a_mixed_time_scales_the_roofline_of_what_was_not_measured(
    sketch_of_family: Callable[[str], Sketch],
) -> None:
    """Where every measured linear takes 7 times its roofline, so does one that was not."""
    sketch, site = sketch_of_family("llama"), "model.layers.0.mlp.down_proj"
    save_device()
    device = Device.named("bench-test")
    table = table_of(sketch, [Plan({})])
    slow = {
        key: replace(time, seconds=7 * device.seconds(time.size, time.flops))
        for key, time in table.times.items()
    }
    replace(table, times=slow).save()
    mixed = cost_model(DECODE_MS, sketch, replace(WORK, times="mixed"))
    modelled = cost_model(DECODE_MS, sketch, replace(WORK, times="modelled"))
    packed = LayerSpec.parse("rtn-w3g32")
    expected = 7 * OVERHEAD.scale * modelled.site(site, packed)
    assert mixed.site(site, packed) == pytest.approx(expected, rel=1e-3)
    assert mixed.source_of(Plan({})) == "measured"
    assert mixed.source_of(Plan({site: packed})) == "mixed"


def test_the_fit_recovers_what_the_runs_were_made_of() -> None:
    rng = np.random.default_rng(0)
    runs = [
        ModelRun(float(ops), int(a), int(m), 0.0)
        for ops, a, m in zip(
            rng.uniform(1e-3, 9e-3, 9), rng.integers(1, 9, 9), rng.integers(1, 9, 9), strict=True
        )
    ]
    made = [replace(run, seconds=predicted_s(OVERHEAD, run)) for run in runs]
    found = fit_overhead(made)
    for name in ("scale", "fixed_s", "attention_s", "mlp_s"):
        assert getattr(found, name) == pytest.approx(getattr(OVERHEAD, name), rel=1e-6)
    assert found.error < 1e-9
    assert found.runs == 9
    noisy = [replace(run, seconds=run.seconds * 1.2 ** (-1) ** i) for i, run in enumerate(made)]
    worse = fit_overhead(noisy)
    assert min(worse.scale, worse.fixed_s, worse.attention_s, worse.mlp_s) >= 0
    assert 0.05 < worse.error < 0.3
    with pytest.raises(ConfigError, match="at least 4 whole-model runs, got 3"):
        fit_overhead(made[:3])


def test_a_device_of_this_machine_is_found_by_name() -> None:
    shipped = device_names()
    save_device("mine")
    assert device_names() == (*shipped, "mine")
    found = Device.named("mine")
    assert found == Device("this one", 1e10, 1e11, "measured by a test")
    assert found.seconds(1e10, 1e10) == pytest.approx(1.0)
    assert found.seconds(1e9, 1e12) == pytest.approx(10.0)
    for name in ("h100", "Mine", "a/b", ""):
        with pytest.raises(ConfigError, match="cannot be called"):
            found.save(name)


def test_a_damaged_device_file_is_noticed(tmp_path: Path) -> None:
    path = Device("this one", 1e10, 1e11, "a test").save("mine")
    path.write_text("name = 'this one'\n", encoding="utf-8")
    with pytest.raises(StoreError, match="describes no device"):
        Device.named("mine")
