"""Profiles as plans of a space: ladders, budgets, and where samplers and studies take them up."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest

from autocomp.calibrate.collect import Collect
from autocomp.config import load_config
from autocomp.core.progress import Silent
from autocomp.core.registry import SAMPLERS
from autocomp.core.spec import LayerSpec
from autocomp.search.allocate import allocated, ladders, offered, share_kept
from autocomp.search.clock import Clock
from autocomp.search.scoring import score_options
from autocomp.search.setup import Setup
from autocomp.search.stored import search_context
from autocomp.search.workbench import Workbench
from autocomp.testing.samplers import ToyModel, check_sampler, run_sampler

MASKS = tuple(f"wanda-s{percent}+rtn-w4g64" for percent in (30, 40, 50, 60, 70))
MASKED = (*MASKS, "wanda-1:4+rtn-w4g64", "wanda-2:4+rtn-w4g64", "rtn-w4g64", "rtn-w8g64")
RANKS = ("svd-p20+rtn-w8g64", "svd-p40+rtn-w8g64", "svd-p60+rtn-w8g64", "rtn-w8g64")


def sparse(**settings: object) -> ToyModel:
    """A toy model whose budget half-sparse linears on 4-bit codes meet."""
    return ToyModel(linear=MASKED, allocations=("owl", "samsp"), bits=3.4, **settings)


def shares_of(model: ToyModel, token: str, slot: str = "mask") -> dict[str, float]:
    context = model.contexts[0]
    plan = context.space.decode(context.params(context.allocated[token]))
    sketch = context.space.sketch
    return {
        site.name: share_kept(plan[site.name], slot, site.shape)
        for site in sketch.sites
        if site.kind == "linear"
    }


@pytest.mark.parametrize(
    ("token", "slot", "share"),
    [
        ("wanda-s30+rtn-w4g64", "mask", 0.7),
        ("wanda-2:4", "mask", 0.5),
        ("wanda-1:4", "mask", 0.25),
        ("rtn-w4g64", "mask", 1.0),
        ("svd-r16", "factor", 16 * 128 / 64**2),
        ("rtn-w4g64", "factor", 1.0),
    ],
)
def test_share_kept(token: str, slot: str, share: float) -> None:
    assert share_kept(LayerSpec.parse(token), slot, (64, 64)) == pytest.approx(share)


def test_a_ladder_is_one_method_one_pattern_and_one_rest() -> None:
    context = sparse().contexts[0]
    sketch, lists = context.space.sketch, context.space.lists
    unstructured, patterned = sorted(
        ladders(sketch, lists, "mask"), key=lambda ladder: -max(map(len, ladder.options.values()))
    )
    for options in unstructured.options.values():
        assert list(options) == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 1.0])
    for name, options in patterned.options.items():
        assert list(options) == [0.25, 0.5, 1.0]
        assert [lists[name][i].token() for i in options.values()][2] == "rtn-w4g64"
    assert not ladders(sketch, lists, "factor")


def test_a_refinement_and_a_shuffle_go_with_their_mask() -> None:
    tokens = ("wanda-s60+dsnot+rtn-w4g64", "shuffle+wanda-2:4+rtn-w4g64", "rtn-w4g64")
    context = ToyModel(linear=tokens).contexts[0]
    found = ladders(context.space.sketch, context.space.lists, "mask")
    shares = [sorted(next(iter(ladder.options.values()))) for ladder in found]
    assert sorted(shares) == [pytest.approx([0.4, 1.0]), [0.5, 1.0]]


def test_one_share_alone_is_no_ladder() -> None:
    model = ToyModel(linear=("wanda-2:4+rtn-w8g64", "rtn-w4g64"))
    context = model.contexts[0]
    assert not ladders(context.space.sketch, context.space.lists, "mask")


def test_offered_are_those_with_something_to_divide() -> None:
    tokens = ("owl", "samsp-a0.2", "asvd")
    for linear, expected in (
        (MASKED, ("owl", "samsp-a0.2")),
        (RANKS, ("asvd",)),
        (("rtn-w4g64", "rtn-w8g64"), ()),
    ):
        space = ToyModel(linear=linear).contexts[0].space
        assert offered(tokens, space.sketch, space.lists) == expected


@pytest.mark.parametrize("token", ["owl", "samsp"])
def test_a_plan_fills_its_budget_and_follows_the_signals(token: str) -> None:
    model = sparse()
    context = model.contexts[0]
    found = context.allocated[token]
    assert not found.bypassed.any()
    assert 0.97 * context.budget_bytes < found.cost <= context.budget_bytes
    shares, signals = shares_of(model, token), context.signals[token]
    assert len(set(shares.values())) > 1
    ordered = [shares[name] for name in sorted(signals, key=signals.__getitem__)]
    assert all(less <= more for less, more in pairwise(ordered))


def test_bytes_that_a_whole_block_would_exceed_go_to_some_of_its_linears() -> None:
    """Where all signals of a block are one, as OWL's are, its linears would all move together."""
    model = ToyModel(linear=("wanda-2:4+rtn-w4g64", "rtn-w4g64"), allocations=("owl",), bits=3.6)
    (context,) = model.contexts
    sketch = context.space.sketch
    signals = {"owl": {s.name: float(s.block) for s in sketch.sites if s.kind == "linear"}}
    context = replace(context, signals=signals)
    found = context.allocated["owl"]
    ladder = ladders(sketch, context.space.lists, "mask")[0].options
    shares = {
        site.name: next(k for k, i in ladder[site.name].items() if i == found.choice[row])
        for row, site in enumerate(sketch.weights())
        if site.kind == "linear"
    }
    partly = {sketch[name].block for name, share in shares.items() if share == 1.0}
    halves = {sketch[name].block for name, share in shares.items() if share == 0.5}
    assert len(partly & halves) == 1
    steps = [
        group.cost[ladder[group.name][1.0]] - group.cost[ladder[group.name][0.5]]
        for group in context.problem.groups
        if shares.get(group.name) == 0.5 and sketch[group.name].block in partly
    ]
    assert 0 <= context.budget_bytes - found.cost < min(steps)


def test_a_smaller_budget_keeps_less() -> None:
    context = sparse().contexts[0]
    costs = [
        found.cost
        for share in (1.0, 0.95, 0.9, 0.85)
        if (found := allocated(context, "samsp", int(share * context.budget_bytes)))
    ]
    assert len(costs) == 4
    assert costs == sorted(costs, reverse=True)


def test_no_plan_where_all_fits_or_nothing_does() -> None:
    context = sparse().contexts[0]
    assert allocated(context, "owl", 10**9) is None
    assert allocated(context, "owl", 10) is None


def test_asvd_divides_ranks_by_what_each_would_lose() -> None:
    model = ToyModel(linear=RANKS, allocations=("asvd",), bits=6.0)
    context = model.contexts[0]
    found = context.allocated["asvd"]
    assert found.cost <= context.budget_bytes
    shares = shares_of(model, "asvd", "factor")
    losses = {group.name: group.score[2] for group in context.problem.groups}  # at 60 %
    factored = [losses[name] for name, share in shares.items() if share < 1.0]
    whole = [losses[name] for name, share in shares.items() if share == 1.0]
    assert factored
    assert whole
    assert max(factored) < min(whole)


@pytest.mark.parametrize("name", ["auto", "random", "tpe", "nsgaii"])
def test_samplers_enqueue_the_plans_and_say_so(name: str) -> None:
    model = sparse(bypass=False)
    told = check_sampler(SAMPLERS[name], model, 14)
    origins = [record.origin for record in told]
    first = origins.index("allocation:owl")
    assert origins[first : first + 2] == ["allocation:owl", "allocation:samsp"]
    assert set(origins[:first]) <= {"uniform"}
    context = model.contexts[0]
    assert told[first].params == context.params(context.allocated["owl"])


def test_without_allocations_a_search_is_as_it_was() -> None:
    model = ToyModel(linear=MASKED, bits=3.4, bypass=False)
    told = run_sampler(SAMPLERS["auto"], model, 12)
    assert not any(record.origin.startswith("allocation") for record in told)


SETTINGS = {
    "data.window": 64,
    "data.calibration_tokens": 640,
    "data.rungs": (128, 256),
    "data.heldout_tokens": 64,
    "space.linear": ["wanda-s50+rtn-w4g16", "rtn-w4g16", "rtn-w8g16"],
    "space.embedding": ["rtn-w4g16"],
}


def test_the_pass_that_scores_reads_the_signals(trained_llama_path) -> None:
    setup = Setup.of(load_config(None, {"model": str(trained_llama_path), **SETTINGS}))
    bench = Workbench(setup.config)
    tokens = offered(setup.config.search.allocations, setup.sketch, setup.lists)
    assert tokens == ("owl", "samsp")
    plain = score_options(bench, setup.site_lists, Silent(), Clock())
    table = score_options(bench, setup.site_lists, Silent(), Clock(), allocations=tokens)
    assert not plain.signals
    assert table.options == plain.options
    linears = {s.name: s for s in setup.sketch.sites if s.kind == "linear"}
    assert all(table.signals[token].keys() == linears.keys() for token in tokens)
    blocks = {(linears[name].block, value) for name, value in table.signals["owl"].items()}
    assert len(blocks) == setup.sketch.num_layers
    for block in bench_traces(bench):
        for name, trace in block.items():
            weights = prod(linears[name].shape)
            assert table.signals["samsp"][name] * weights == pytest.approx(trace, rel=1e-3)
    context = search_context(setup, table)
    assert list(context.signals) == list(tokens)
    off = setup.config.model_copy(
        update={"search": setup.config.search.model_copy(update={"allocations": ()})}
    )
    assert not search_context(Setup.of(off), table).signals


def bench_traces(bench: Workbench):
    """Yield, by block, the sum of ``E[(g_i x_j)²]`` over each matrix, all tokens read."""
    stream = bench.stream(collect=Collect(sensitivity=True))
    for _ in stream.forward():
        continue
    for block in stream.backward():
        yield {name: stats.sensitivity.sum().item() for name, stats in block.stats.items()}
