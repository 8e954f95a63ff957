"""Costs, limits and what is refused before any work."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocomp.config import StudyConfig, load_config
from autocomp.core.cost import DECODE_MS, FLOPS, PEAK_MEMORY_BYTES, WEIGHT_BYTES
from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.sketch import Sketch
from autocomp.cost import decode_flops, peak_memory_bytes, weight_bytes
from autocomp.search.knapsack import Problem, Solution, largest, smallest, solve
from autocomp.search.setup import Setup

CONTEXT = 256


def setup_of(model: Path, **changes: object) -> Setup:
    settings = {
        "model": str(model),
        "data.window": 512,
        "space.linear": ("rtn-w4g16", "rtn-w8g16", "svd-r8"),
        "space.embedding": ("rtn-w4g16", "dense"),
        "budget.context": CONTEXT,
    }
    return Setup.of(load_config(None, settings | changes))


def scored(setup: Setup) -> Problem:
    """Return the problem with scores that fall with what every option takes of all costs."""
    problem, rng = setup.problem(None), np.random.default_rng(0)
    tables = [problem.cost, *(limit.cost for limit in problem.limits)]
    size = sum(table / max(table.max(), 1) for table in tables)
    lost = rng.lognormal(0, 0.3, size.shape) * np.exp(-3 * size)
    return problem.with_scores(lost, rng.lognormal(0, 1, len(problem.bypasses)))


def budget_of(setup: Setup, **limits: float) -> StudyConfig:
    budget = setup.config.budget.model_copy(update=limits)
    return setup.config.model_copy(update={"budget": budget})


def with_limits(setup: Setup, **limits: float) -> Setup:
    return Setup(budget_of(setup, **limits), setup.sketch, setup.lists)


@pytest.fixture(scope="module")
def free(tiny_llama_path) -> Setup:
    """Every cost is counted and none binds."""
    limits = {"max_bytes": "1GB", "max_memory": "1GB", "max_decode_ms": 1e3, "max_flops": "1T"}
    return setup_of(tiny_llama_path, **{f"budget.{name}": value for name, value in limits.items()})


def test_costs_are_those_of_the_plan(free):
    plan = free.plan_of(solve(scored(free), free.budget))
    costs = free.costs(plan)
    sketch: Sketch = free.sketch
    assert set(costs) == {WEIGHT_BYTES, PEAK_MEMORY_BYTES, DECODE_MS, FLOPS}
    assert costs[WEIGHT_BYTES] == weight_bytes(sketch, plan)
    assert costs[PEAK_MEMORY_BYTES] == peak_memory_bytes(sketch, plan, context=CONTEXT, batch=1)
    assert costs[FLOPS] == decode_flops(sketch, plan, context=CONTEXT)
    assert 0 < costs[DECODE_MS] < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_the_knapsack_prices_every_resource_as_an_upper_bound(free, seed):
    problem, rng = scored(free), np.random.default_rng(seed)
    choice = [int(rng.integers(len(group.cost))) for group in problem.groups]
    found = problem.solution(np.array(choice), rng.random(len(problem.bypasses)) < 0.3)
    costs = free.costs(free.plan_of(found))
    priced = dict(zip((limit.resource for limit in problem.limits), found.used, strict=True))
    priced[problem.resource] = found.cost
    assert costs[WEIGHT_BYTES] <= priced[WEIGHT_BYTES]
    for name in (PEAK_MEMORY_BYTES, FLOPS):
        assert costs[name] == priced[name]
    assert costs[DECODE_MS] == pytest.approx(priced[DECODE_MS] * 1e-9)


@pytest.mark.parametrize(
    ("changes", "resource", "limits"),
    [
        ({}, WEIGHT_BYTES, []),
        ({"budget.max_bytes": "40kB"}, WEIGHT_BYTES, []),
        ({"budget.max_memory": "1MB"}, PEAK_MEMORY_BYTES, []),
        ({"budget.max_bytes": "40kB", "budget.max_memory": "1MB"}, WEIGHT_BYTES,
         [PEAK_MEMORY_BYTES]),
        ({"budget.max_bytes": "40kB", "objective.cost": "decode_ms"}, WEIGHT_BYTES, []),
        ({"budget.max_bytes": "40kB", "budget.max_decode_ms": 1, "objective.cost": "decode_ms"},
         DECODE_MS, [WEIGHT_BYTES]),
        ({"objective.cost": "flops"}, FLOPS, []),
    ],
)  # fmt: skip
def test_what_the_budget_is_of(tiny_llama_path, changes, resource, limits):
    """The minimised cost where it is limited or nothing is, else the first that is limited."""
    setup = setup_of(tiny_llama_path, **changes)
    problem = setup.problem(None)
    assert (setup.resource, problem.resource) == (resource, resource)
    assert [limit.resource for limit in problem.limits] == limits
    plan = setup.plan_of(solve(problem, setup.budget))
    assert setup.config.objective.cost in setup.costs(plan)
    assert setup.spent(plan) <= setup.budget


def test_without_a_limit_the_budget_is_the_largest_plan(tiny_llama_path):
    setup = setup_of(tiny_llama_path, **{"objective.cost": "flops"})
    most = int(setup.problem(None).cost.max(axis=1).sum()) + setup.problem(None).fixed_cost
    assert setup.budget == most == setup.reach(FLOPS)[1]


def test_bytes_and_memory_are_two_constraints_and_caches_are_searched(tiny_llama_path):
    """Weights count in the file, weights and caches in memory: both hold, and both bind."""
    free = setup_of(
        tiny_llama_path, **{"budget.max_bytes": "1GB", "budget.max_memory": "1GB"},
        **{"budget.context": 8192, "space.bypass": False},
    )  # fmt: skip
    caches = [name for name in free.weight_groups if free.sketch[name].kind == "cache"]
    assert len(caches) == 2
    costs = free.costs(free.plan_of(largest(scored(free))))
    low, high = free.reach(PEAK_MEMORY_BYTES)
    plans = {}
    for name, memory in (("file", high), ("both", low + 0.5 * (high - low))):
        found = with_limits(free, max_bytes=int(0.7 * costs[WEIGHT_BYTES]), max_memory=int(memory))
        plan = found.plan_of(solve(scored(found), found.budget))
        assert found.within(plan)
        plans[name] = [plan[cache].token() for cache in caches]
    assert plans["file"] == ["dense", "dense"]
    assert plans["both"] != ["dense", "dense"]


@pytest.mark.parametrize(
    ("name", "option", "digits"),
    [("max_bytes", "--max-bytes", r"\d+ bytes"), ("max_memory", "--max-memory", r"\d+ bytes"),
     ("max_decode_ms", "--max-decode-ms", r"[\d.e-]+ ms"), ("max_flops", "--max-flops", r"\d+ f")],
)  # fmt: skip
def test_a_limit_that_no_plan_holds_is_refused_with_the_smallest_value(free, name, option, digits):
    costs = {"max_bytes": WEIGHT_BYTES, "max_memory": PEAK_MEMORY_BYTES,
             "max_decode_ms": DECODE_MS, "max_flops": FLOPS}  # fmt: skip
    low, high = free.reach(costs[name])
    assert low < high
    with_limits(free, **{name: low}).check_feasible()
    with pytest.raises(InfeasibleError, match=rf"{option} .* needs .*\({digits}") as refused:
        with_limits(free, **{name: low * 0.999}).check_feasible()
    found = str(refused.value).partition("(")[2].partition(" ")[0]
    assert float(found) == pytest.approx(low, rel=1e-9)


def test_limits_that_hold_alone_but_not_together_are_refused(tiny_llama_path):
    """Rank 8 is the quick way and 4 bits the small one; nothing is both."""
    free = setup_of(
        tiny_llama_path, **{"space.bypass": False, "space.linear": ("rtn-w4g16", "svd-r8")},
        **{"budget.max_bytes": "1GB", "budget.max_flops": "1T"},
    )  # fmt: skip
    quick = free.plan_of(smallest(free.problem(None, (FLOPS,))))
    small = free.plan_of(smallest(free.problem(None, (WEIGHT_BYTES,))))
    size, flops = free.costs(small)[WEIGHT_BYTES], free.costs(quick)[FLOPS]
    assert free.costs(quick)[WEIGHT_BYTES] > size
    assert free.costs(small)[FLOPS] > flops
    tight = with_limits(free, max_bytes=math.ceil(1.02 * size), max_flops=math.ceil(1.02 * flops))
    for name in ("max_bytes", "max_flops"):
        with_limits(tight, **{name: None}).check_feasible()
    with pytest.raises(InfeasibleError, match=r"--max-flops .* within --max-bytes .* needs"):
        tight.check_feasible()


def test_violations_are_in_the_unit_of_the_limit(free):
    plan = free.plan_of(largest(scored(free)))
    costs = free.costs(plan)
    tight = with_limits(
        free, max_bytes=costs[WEIGHT_BYTES] - 7, max_decode_ms=costs[DECODE_MS] / 2,
    )  # fmt: skip
    found = tight.violation(plan)
    assert found[WEIGHT_BYTES] == 7
    assert found[DECODE_MS] == pytest.approx(costs[DECODE_MS] / 2, rel=1e-4)
    assert found[FLOPS] < 0
    assert not tight.within(plan)
    exact = with_limits(free, max_bytes=costs[WEIGHT_BYTES], max_decode_ms=costs[DECODE_MS])
    assert exact.within(plan)


def test_an_unknown_device_is_refused_before_work(tiny_llama_path):
    setup = setup_of(
        tiny_llama_path, **{"budget.device": "h10", "budget.max_decode_ms": 1}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"'h10'.*'h100'"):
        setup.check_feasible()
    unused = setup_of(tiny_llama_path, **{"budget.device": "h10"})
    unused.check_feasible()


def test_a_solution_that_holds_the_tables_holds_the_limits(free):
    """The tables bound the exact costs, so every solution within them is a plan within limits."""
    costs = free.costs(free.plan_of(largest(scored(free))))
    tight = with_limits(
        free,
        max_bytes=int(0.7 * costs[WEIGHT_BYTES]),
        max_memory=int(0.9 * costs[PEAK_MEMORY_BYTES]),
        max_decode_ms=0.8 * costs[DECODE_MS],
        max_flops=int(0.95 * costs[FLOPS]),
    )
    problem = scored(tight)
    found: Solution = solve(problem, tight.budget)
    assert problem.holds(found, tight.budget)
    assert tight.within(tight.plan_of(found))
    loose = replace(problem, limits=())
    assert solve(loose, tight.budget).score <= found.score
