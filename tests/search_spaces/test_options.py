"""Integer parameters: decode, encode and what they refuse."""

import itertools
import math
from dataclasses import replace

import pytest

from autocomp.core.errors import PlanError
from autocomp.core.plan import Plan
from autocomp.core.registry import SPACES, load_object
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.testing.spaces import toy_sketch

OptionSpace = load_object("autocomp.search_spaces._options:OptionSpace")

EMBEDDING = "model.embed_tokens"
ATTENTION = "model.layers.0.self_attn"
MLP = "model.layers.0.mlp"
QUERY = f"{ATTENTION}.q_proj"
KEY = f"{ATTENTION}.k_proj"
OUT = f"{ATTENTION}.o_proj"


def space(fused=False, bypass=True, linear=("gptq-w4g64", "dense")):
    sketch = toy_sketch(blocks=1, fused=fused)
    lists = SPACES["bits"].candidates(
        sketch, linear=linear, embedding=("rtn-w4g64", "dense"), bypass=bypass
    )
    return OptionSpace(sketch, lists)


def test_parameters_are_integers_named_by_group():
    ranges = space(fused=True).distributions()
    assert list(ranges) == [
        EMBEDDING,
        ATTENTION,
        MLP,
        QUERY,
        OUT,
        f"{MLP}.gate_proj",
        f"{MLP}.down_proj",
    ]
    assert {(r.low, r.high) for r in ranges.values()} == {(0, 1)}


def test_group_shares_its_option():
    made = space(fused=True)
    plan = made.decode(dict.fromkeys(made.groups, 0) | {QUERY: 1})
    assert plan[QUERY] == plan[KEY] == DENSE
    assert plan[OUT].token() == "gptq-w4g64"


def test_bypass_makes_its_linears_inert():
    made = space()
    params = dict.fromkeys(made.groups, 1)
    plan = made.decode(params | {MLP: 0})
    assert plan[ATTENTION].token() == "bypass"
    assert plan[QUERY] == DENSE
    assert made.encode(plan)[QUERY] == 0
    assert made.decode(params | {MLP: 0, QUERY: 0}) == plan
    short = {name: 1 for name in made.groups if not name.startswith(f"{ATTENTION}.")}
    assert made.decode(short | {MLP: 0}) == plan, "inert parameters may be missing"


def test_every_site_is_in_the_plan_when_nothing_may_be_dropped():
    made = space(bypass=False)
    plan = made.decode(dict.fromkeys(made.groups, 0))
    assert set(plan.layers) == set(made.sketch.by_name)
    assert plan[ATTENTION] == DENSE
    assert made.decode(made.encode(plan)) == plan


@pytest.mark.parametrize(("fused", "bypass"), [(False, True), (True, True), (True, False)])
def test_size_is_the_number_of_plans(fused, bypass):
    made = space(fused, bypass)
    assignments = itertools.product(*(range(r.high + 1) for r in made.distributions().values()))
    plans = {made.decode(dict(zip(made.groups, values, strict=True))) for values in assignments}
    assert made.log10_size == pytest.approx(math.log10(len(plans)), abs=1e-9)


def test_size_of_a_large_space_does_not_overflow():
    sketch = toy_sketch(blocks=100)
    made = OptionSpace(sketch, SPACES["joint"].candidates(sketch))
    assert 500 < made.log10_size < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({QUERY: 2}, rf"{QUERY}.*option 2.*0\.\.1"),
        ({QUERY: -1}, "option -1"),
        ({"model.layers.0.wrong": 0}, "unknown parameters"),
    ],
)
def test_decode_refuses(change, message):
    made = space()
    with pytest.raises(PlanError, match=message):
        made.decode(dict.fromkeys(made.groups, 0) | change)


def test_decode_misses_an_active_parameter():
    made = space()
    with pytest.raises(PlanError, match=f"{QUERY}.*missing"):
        made.decode({name: 0 for name in made.groups if name != QUERY})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({OUT: "gptq-w3g64"}, rf"{OUT}.*gptq-w3g64.*gptq-w4g64, dense"),
        ({KEY: "gptq-w4g64"}, "share one decision"),
        ({"model.layers.7.mlp": "dense"}, "does not have"),
    ],
)
def test_encode_refuses(layers, message):
    made = space(fused=True)
    plan = made.decode(dict.fromkeys(made.groups, 1) | {ATTENTION: 0, MLP: 0})
    changed = plan.layers | {name: LayerSpec.parse(token) for name, token in layers.items()}
    with pytest.raises(PlanError, match=message):
        made.encode(Plan(layers=changed))


def test_encode_refuses_a_bypass_that_the_space_lacks():
    plan = space().decode(dict.fromkeys(space().groups, 1))
    with pytest.raises(PlanError, match="bypass"):
        space(bypass=False).encode(plan)


def test_lists_must_match_the_groups():
    made = space()
    with pytest.raises(PlanError, match="no group"):
        replace(made, lists={**made.lists, "model.norm": (DENSE,)})
    with pytest.raises(PlanError, match=f"{QUERY}.*no options"):
        replace(made, lists={k: v for k, v in made.lists.items() if k != QUERY})
    with pytest.raises(PlanError, match=f"{MLP}.*sub-block"):
        replace(made, lists={**made.lists, MLP: (DENSE,)})
