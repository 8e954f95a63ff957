"""Reads of the model for samplers: gradients that are right, and kept."""

from pathlib import Path

import pytest
import torch

from autocomp.config import StudyConfig, load_config
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.models.weights import get_weight
from autocomp.search.clock import Clock
from autocomp.search.oracle import Changes, ModelOracle
from autocomp.search.study import Study
from autocomp.search.variants import Variants

OPTIONS = ("rtn-w3g16", "awq+rtn-w4g16", "magnitude-s50", "dense")


def config(model: Path, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "space.name": "joint",
        "space.linear": OPTIONS,
        "space.embedding": ("dense",),
        "space.bypass": True,
        "data.window": 64,
        "data.calibration": "corpus",
        "data.calibration_tokens": 512,
        "data.rungs": (128, 256),
        "data.heldout_tokens": 256,
        "device": "cpu",
    }
    return load_config(None, settings | changes)


def variants(model: Path, folder: Path) -> Variants:
    study = Study.open(None, folder, fingerprint={})
    return Variants(config(model), study, Silent(), Clock())


@pytest.fixture
def models(tiny_llama_path, tmp_path) -> Variants:
    return variants(tiny_llama_path, tmp_path)


def mixed(models: Variants, dropped: bool = False) -> Plan:
    """Return a plan that uses every option, and drops the last MLP where asked."""
    sketch = models.base.sketch
    linears = [site.name for site in sketch.sites if site.kind == "linear"]
    layers = {site.name: DENSE for site in sketch.sites}
    for index, name in enumerate(linears):
        layers[name] = LayerSpec.parse(OPTIONS[index % len(OPTIONS)])
    if dropped:
        *_, block = sketch.subblocks()
        layers[block.name] = LayerSpec.parse("bypass")
        layers |= dict.fromkeys((name for name in block.members if name in linears), DENSE)
    return Plan(layers)


def options_of(models: Variants) -> dict[str, tuple[LayerSpec, ...]]:
    return {
        site.name: tuple(map(LayerSpec.parse, OPTIONS))
        for site in models.base.sketch.sites
        if site.kind == "linear"
    }


def test_first_order_changes_are_the_gradient_times_the_difference(models):
    bench, plan = models.base, mixed(models)
    meter = bench.search_meter
    changes = Changes(bench, plan, options_of(models))
    windows = range(4)
    found = changes.mean(changes.read(meter, windows))

    plain = [
        site.name
        for site in bench.sketch.sites
        if site.kind == "linear" and plan[site.name].input is None
    ]
    weights = {name: bench.model.get_submodule(name).weight for name in plain}
    for weight in weights.values():
        weight.requires_grad_(True)
    meter.backward(bench.model, windows, bench.head_token(plan.layers))
    for name, weight in weights.items():
        for token in {"rtn-w3g16", "magnitude-s50", "dense"} - {plan[name].token()}:
            spec = LayerSpec.parse(token)
            other = bench.weight(name) if spec == DENSE else bench.operands(name, spec).weight
            difference = other.float() - get_weight(bench.model, name).float()
            expected = (weight.grad.float() * difference).sum().item()
            scale = (weight.grad.float() * difference).square().sum().sqrt().item()
            # bf16 rounds the outer products that autograd sums, by one part in 256 each.
            assert found.options[name][token] == pytest.approx(expected, abs=0.05 * scale + 1e-7)
        weight.requires_grad_(False)
        weight.grad = None
    assert all(found.options[name][plan[name].token()] == 0 for name in plain)
    assert found.options.keys() == options_of(models).keys()  # scaled inputs too


def test_a_small_change_of_the_plan_changes_the_loss_as_predicted(models):
    bench, plan = models.base, mixed(models)
    meter, windows = bench.search_meter, range(4)
    changes = Changes(bench, plan, options_of(models))
    loss = changes.read(meter, windows)
    found = changes.mean(loss)
    plain = (n for n in found.options if plan[n].input is None)  # whose weight is the module's
    name = next(n for n in plain if n.endswith("down_proj"))
    before = get_weight(bench.model, name).clone()
    goal = bench.operands(name, LayerSpec.parse("rtn-w3g16")).weight.float()
    # bf16 weights hold no small step, and a large one leaves the third order.
    step, error = (0.25, 0.3) if before.dtype == torch.bfloat16 else (0.02, 0.01)
    before = before.float()
    moved = {}
    for sign in (1, -1):
        bench.model.get_submodule(name).weight.data.copy_(before + sign * step * (goal - before))
        with torch.no_grad():
            scores = meter.measure(bench.model, windows, head_token="dense")
        moved[sign] = sum(scores.kl_nats) / 4 + meter.floor_nats
    central = (moved[1] - moved[-1]) / (2 * step)
    assert found.options[name]["rtn-w3g16"] == pytest.approx(central, rel=error)


def test_dropped_sub_blocks_have_no_gradient_and_kept_ones_do(models):
    bench, plan = models.base, mixed(models, dropped=True)
    changes = Changes(bench, plan, options_of(models))
    found = changes.mean(changes.read(bench.search_meter, range(2)))
    *_, gone = bench.sketch.subblocks()
    assert gone.name not in found.drop
    assert not set(gone.members) & set(found.options)
    assert found.drop.keys() == {s.name for s in bench.sketch.subblocks()} - {gone.name}
    assert all(abs(value) > 0 for value in found.drop.values())


def test_an_answer_is_kept_and_its_tokens_count_once(
    models, tiny_llama_path, tmp_path, monkeypatch
):
    monkeypatch.setattr("autocomp.search.oracle.GRADIENT_TOKENS", 512)
    plan = mixed(models)
    oracle = ModelOracle(models, tmp_path)
    assert oracle.parts == 2
    found = [oracle.linearised(plan, part) for part in range(2)]
    assert found[0] != found[1]
    path = min((tmp_path / "linearised").iterdir())
    assert models.study.get_tokens()["gradient"] == 2 * 3 * 512  # forward 1, backward 2
    again = ModelOracle(variants(tiny_llama_path, tmp_path), tmp_path)
    assert [again.linearised(plan, part) for part in range(2)] == found
    assert models.study.get_tokens()["gradient"] == 2 * 3 * 512

    path.write_text("{", encoding="utf-8")  # damaged: noticed and made again
    fresh = ModelOracle(variants(tiny_llama_path, tmp_path), tmp_path)
    assert fresh.linearised(plan, 0) == found[0]


def test_the_pool_is_text_that_no_trial_is_measured_on(models, tmp_path):
    oracle = ModelOracle(models, tmp_path)
    assert oracle.pool == 4 * 256 // 64
    searched = {tuple(row.tolist()) for row in models.base.search_windows}
    pool = models.base.windows("calibration", 1024).input_ids
    assert not searched & {tuple(row.tolist()) for row in pool}
    one, two = oracle.losses(mixed(models), [3, 0]), oracle.losses(mixed(models), [3])
    assert one[0] == pytest.approx(two[0], rel=1e-3)
