"""Timing operations and whole models, on tiny ones: what is timed, not how fast it is."""

import time

import pytest
import torch

from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.cost import Device, Workload, cost_model, native_infos
from autocomp.cost.ops import model_key, plan_ops
from autocomp.cost.times import DECODE, PREFILL, Overhead, TimeTable
from autocomp.evaluate.bench import OpBench, cases_of_model, cases_of_shapes, conditions, rows_of
from autocomp.evaluate.forms import Forms, plain_stats, stand_in
from autocomp.evaluate.latency import ModelBench, fit_plans, step
from autocomp.evaluate.timing import Timing, interleaved
from autocomp.layers.linear import CompressedModule
from autocomp.models import load

CPU = torch.device("cpu")
SHAPE = (32, 64)


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    monkeypatch.setattr("autocomp.evaluate.bench.COLD_BYTES", 2**13)


def test_tasks_take_turns_and_warm_up_does_not_count():
    order: list[str] = []
    pauses = iter([0.05, 0.05] + [0.0] * 10)

    def slow() -> None:
        order.append("slow")
        time.sleep(0.004 + next(pauses))

    found = interleaved([[slow], [lambda: order.append("quick")] * 3], CPU, repeats=3)
    assert order == ["slow", "quick", "quick", "quick"] * 5
    assert [timing.repeats for timing in found] == [3, 3]
    assert 0.004 <= found[0].seconds < 0.05
    assert found[1].seconds < found[0].seconds
    timing = Timing.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (timing.seconds, timing.noise) == (3.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("token", "made_by"),
    [
        ("gptq-w4g16", "rtn-w4g16"),
        ("gptq-w4g16-sym", "rtn-w4g16-sym"),
        ("wanda-2:4+gptq-w8g16", "magnitude-2:4+rtn-w8g16"),
        ("wsvd-r8", "svd-r8"),
        ("awq+gptq-w4g16", "awq+rtn-w4g16"),
        ("rtn-w8g16-sym", "rtn-w8g16-sym"),
    ],
)
def test_a_random_weight_has_the_format_of_its_spec(token, made_by):
    spec, forms = LayerSpec.parse(token), Forms("float16")
    assert stand_in(spec, SHAPE, "float16").token() == made_by
    weight = forms.weight(spec, SHAPE)
    weight.check()
    other = forms.weight(spec, SHAPE)
    assert other.layout == weight.layout
    for name, tensor in weight.tensors.items():
        assert torch.equal(tensor, other.tensors[name])
        assert tensor.data_ptr() != other.tensors[name].data_ptr()
    assert float(weight.to_dense().std()) == pytest.approx(64**-0.5, rel=0.5)
    assert (plain_stats(LayerSpec.parse(made_by), SHAPE) is None) == ("awq" not in token)


def test_shapes_are_timed_beside_the_dense_weight():
    specs = [LayerSpec.parse(token) for token in ("gptq-w4g16", "rtn-w8g64", "rtn-w4g48")]
    cases = cases_of_shapes([SHAPE, (16, 16)], specs, [1, 3], "float16")
    tokens = {
        shape: {case.spec.token() for case in cases if case.key.shape == shape}
        for shape in (SHAPE, (16, 16))
    }
    assert tokens == {
        SHAPE: {"dense", "gptq-w4g16", "rtn-w8g64"}, (16, 16): {"dense", "gptq-w4g16"},
    }  # fmt: skip
    device = Device("a test", 1e9, 1e12, "made up")
    found = list(OpBench(CPU, torch.float32, Forms("float16"), 3).run(cases[:3]))
    (rows,) = (rows_of(times, device) for times in found)
    dense = next(row for row in rows if row.spec == "dense")
    packed = next(row for row in rows if row.spec == "gptq-w4g16")
    assert dense.over_dense == 1
    assert packed.over_dense == pytest.approx(packed.median_ms / dense.median_ms)
    assert dense.floor_ms == pytest.approx(1e3 * 2 * 32 * 64 / 1e9)
    assert packed.size == 32 * 64 // 2 + 32 * 4 * 2 + 32 * 2  # codes, scales, zero points
    assert packed.over_floor == pytest.approx(packed.median_ms / packed.floor_ms)


@pytest.fixture(scope="module")
def loaded(tiny_llama_path):
    return load(str(tiny_llama_path), dtype=torch.float32)


def test_a_model_is_made_of_operations_that_were_timed(loaded, tmp_path, monkeypatch):
    """Every operation of every plan over the specs is in the table, for both phases."""
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path))
    sketch, work = loaded.sketch, Workload(16, 2, "tiny", "measured")
    specs = [LayerSpec.parse(token) for token in ("rtn-w4g16", "kivi-k4v4g16r16")]
    bench = OpBench(CPU, torch.float32, Forms(sketch.dtype), 3)
    table = TimeTable("tiny", conditions(CPU, torch.float32))
    for phase in (DECODE, PREFILL):
        for times in bench.run(cases_of_model(sketch, specs, work, phase)):
            table = table.with_times(times)
        table = table.with_overhead(model_key(sketch, work, phase), Overhead())
    Device("a test", 1e9, 1e12, "made up").save("tiny")
    table.save()
    plan = Plan(
        {site.name: specs[0] for site in sketch.weights()}
        | {site.name: specs[1] for site in sketch.caches()}
    )
    for name, phase in (("decode_ms", DECODE), ("prefill_ms", PREFILL)):
        model = cost_model(name, sketch, work)
        keys, _, _ = plan_ops(sketch, plan, work, phase)
        expected = sum(table.times[key].seconds for key in keys)
        assert model.predict(plan) * model.tick == pytest.approx(1e3 * expected, rel=1e-6)
    assert table.conditions.threads == torch.get_num_threads()


def test_whole_models_have_the_plans_formats_and_step(loaded):
    sketch, work = loaded.sketch, Workload(24, 2, "tiny")
    bench = ModelBench(loaded, CPU, torch.float32, Forms(sketch.dtype), repeats=3)
    plans = fit_plans(sketch, [LayerSpec.parse("rtn-w4g16"), LayerSpec.parse("rtn-w8g16")])
    ops = {tuple(plan_ops(sketch, plan, work, DECODE)[1:]) for plan in plans}
    assert ops == {(2, 2), (1, 2), (2, 1), (1, 1)}
    model = bench.model(plans[1])
    packed = [m for m in model.modules() if isinstance(m, CompressedModule)]
    assert len(packed) == len([s for s in sketch.sites if s.kind == "linear"])
    stored = sum(info.nbytes for info in native_infos(sketch, plans[1]).values())
    assert sum(m.compressed().nbytes for m in packed) < stored
    for phase in (DECODE, PREFILL):
        logits = step(model, work, phase, repeats=3)().logits
        assert logits.shape == (2, 1, sketch.vocab_size)
        timings = bench.time(plans[:2], work, phase)
        assert all(timing.seconds > 0 and timing.repeats == 3 for timing in timings)


def test_the_overhead_is_fitted_on_whole_models(loaded):
    sketch, work = loaded.sketch, Workload(16, 1, "tiny")
    forms, spec = Forms(sketch.dtype), LayerSpec.parse("rtn-w4g16")
    times = {}
    for found in OpBench(CPU, torch.float32, forms, 3).run(
        cases_of_model(sketch, [spec], work, DECODE)
    ):
        times |= found
    bench = ModelBench(loaded, CPU, torch.float32, forms, repeats=3)
    overhead = bench.overhead([spec], times, work, DECODE)
    assert overhead.runs == len(fit_plans(sketch, [spec])) == 8
    assert overhead.fixed_s + overhead.attention_s + overhead.mlp_s > 0
