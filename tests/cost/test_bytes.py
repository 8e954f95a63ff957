from collections.abc import Callable

import pytest

from autocomp.core.errors import PlanError
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost import fixed_bytes, native_infos, site_bytes, weight_bytes
from autocomp.testing.plans import LINEAR_TOKENS, random_plan

BYPASS = LayerSpec.parse("bypass")


def additive(sketch: Sketch, plan: Plan) -> int:
    gone = {m for s in sketch.subblocks() if plan[s.name] == BYPASS for m in s.members}
    sites = [site.name for site in sketch.sites if site.name not in gone]
    return fixed_bytes(sketch) + sum(site_bytes(sketch, name, plan[name]) for name in sites)


@pytest.mark.parametrize("seed", range(8))
def test_additive_bound_is_an_upper_bound_and_tight(tiny_sketch: Sketch, seed: int) -> None:
    plan = random_plan(tiny_sketch, seed, bypass=0.3)
    exact, bound = weight_bytes(tiny_sketch, plan), additive(tiny_sketch, plan)
    assert exact <= bound < exact + 64 * (len(native_infos(tiny_sketch, plan)) + 1)


@pytest.mark.parametrize("token", LINEAR_TOKENS)
def test_one_site_changes_the_file_by_its_share(
    token: str, sketch_of_family: Callable[[str], Sketch]
) -> None:
    sketch = sketch_of_family("llama")
    name = "model.layers.1.mlp.down_proj"
    spec = LayerSpec.parse(token)
    change = weight_bytes(sketch, Plan({name: spec})) - weight_bytes(sketch, Plan({}))
    predicted = site_bytes(sketch, name, spec) - site_bytes(sketch, name, DENSE)
    assert abs(change - predicted) < 64 * 6


def test_values_by_hand(sketch_of_family: Callable[[str], Sketch]) -> None:
    sketch = sketch_of_family("llama")
    name = "model.layers.0.mlp.gate_proj"
    infos = native_infos(sketch, Plan({name: LayerSpec.parse("rtn-w4g16")}))
    found = {key: info.nbytes for key, info in infos.items() if key.startswith(name)}
    out_features, in_features = sketch[name].shape
    groups = in_features // 16
    assert found == {
        f"{name}.codes": out_features * in_features // 2,
        f"{name}.scale": out_features * groups * 2,
        f"{name}.zero": out_features * groups // 2,
    }
    assert infos["model.norm.weight"].nbytes == 2 * sketch.hidden_size


def test_a_bypassed_sub_block_costs_nothing(tiny_sketch: Sketch) -> None:
    for site in tiny_sketch.subblocks():
        assert site_bytes(tiny_sketch, site.name, BYPASS) == 0
        saved = weight_bytes(tiny_sketch, Plan({})) - weight_bytes(
            tiny_sketch, Plan({site.name: BYPASS})
        )
        linears = [tiny_sketch[name] for name in site.members if not name.endswith(".cache")]
        data = sum(2 * linear.shape[0] * linear.shape[1] for linear in linears)
        inside = [
            info.nbytes
            for name, info in tiny_sketch.rest.items()
            if name.startswith((f"{site.name}.", *(f"{linear.name}." for linear in linears)))
        ]
        assert saved >= data + sum(inside)


def test_biases_inside_count_only_while_the_sub_block_is_kept(
    sketch_of_family: Callable[[str], Sketch],
) -> None:
    name = "model.layers.0.self_attn"
    assert site_bytes(sketch_of_family("qwen2"), name, DENSE) > 3 * 2
    assert site_bytes(sketch_of_family("llama"), name, DENSE) == 0
    assert site_bytes(sketch_of_family("opt"), "model.decoder.layers.0.mlp", DENSE) > 2 * (
        128 + 64
    )


def test_a_group_size_that_does_not_divide(sketch_of_family: Callable[[str], Sketch]) -> None:
    sketch = sketch_of_family("llama")
    plan = Plan({"model.layers.0.mlp.down_proj": LayerSpec.parse("rtn-w4g48")})
    with pytest.raises(PlanError, match="48"):
        weight_bytes(sketch, plan)


def test_a_plan_of_another_model(sketch_of_family: Callable[[str], Sketch]) -> None:
    plan = random_plan(sketch_of_family("gpt2"), 0)
    with pytest.raises(PlanError, match="another model"):
        weight_bytes(sketch_of_family("llama"), plan)
