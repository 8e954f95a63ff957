import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest

from autocomp.core.errors import InfeasibleError
from autocomp.core.plan import Plan
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.search.ask import Ask
from autocomp.search.context import Schedule, SearchContext, marginal_price, option_kind
from autocomp.search.correction import option_class
from autocomp.search.knapsack import Bypass, Group, Problem, largest, smallest, solve
from autocomp.search.samplers._moves import changes, step
from autocomp.search.samplers.auto import propose
from autocomp.search.samplers.outlook import best_within
from autocomp.search_spaces._options import OptionSpace


@dataclass(frozen=True)
class Part:
    slot: ClassVar[str] = ""
    name: str
    bits: int = 16

    def token(self) -> str:
        return f"{self.name}-w{self.bits}"


def grid(bits: int) -> LayerSpec:
    return LayerSpec(quantizer=Part("grid", bits))


SPARSE = LayerSpec(mask=Part("half"), quantizer=Part("grid", 4))
RANK = LayerSpec(factor=Part("rank"), quantizer=Part("grid", 8))
BYPASS = LayerSpec(structure=Part("bypass"))
# option, bits a weight, bits of the error
LINEAR = (
    (grid(2), 2.3, 2.0),
    (SPARSE, 3.2, 2.7),
    (grid(3), 3.3, 3.0),
    (RANK, 4.2, 2.3),
    (grid(4), 4.3, 4.0),
    (grid(5), 5.3, 5.0),
    (grid(6), 6.3, 6.0),
    (DENSE, 16.0, 16.0),
)
EMBEDDING = tuple((grid(bits), bits + 0.3, float(bits)) for bits in (3, 4, 6, 8))
SHAPES = {
    "attention": {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)},
    "mlp": {"gate": (192, 64), "up": (192, 64), "down": (64, 192)},
}


@dataclass(frozen=True)
class World:
    """A synthetic model: scores as a search sees them, and the KL that is measured."""

    context: SearchContext
    measure: Callable[[dict[str, int]], float]

    @property
    def problem(self) -> Problem:
        return self.context.problem


def make_world(
    seed: int = 0,
    blocks: int = 8,
    bits: float = 4.4,
    bypass: bool = True,
    schedule: Schedule | None = None,
) -> World:
    """True KL = S(1 + S/2)·exp(pairwise interactions), S = Σ κ(class)·role·site·option·score."""
    rng = np.random.default_rng(seed)
    sites, groups, bypasses = [], [], []
    lists: dict[str, tuple[LayerSpec, ...]] = {}

    def add(name: str, kind: str, role: str, shape: tuple[int, int], options) -> int:
        weights = shape[0] * shape[1]
        sites.append(Site(name, kind, role, shape))
        lists[name] = tuple(spec for spec, _, _ in options)
        scale = 2e-4 * weights * rng.lognormal() * (0.05 if kind == "embedding" else 1.0)
        score = [scale * 4.0**-error * rng.lognormal(0, 0.15) for _, _, error in options]
        cost = [int(weights * stored / 8) for _, stored, _ in options]
        groups.append(Group(name, np.array(cost), np.array(score)))
        return len(groups) - 1

    add("embedding", "embedding", "embedding", (1024, 64), EMBEDDING)
    for block in range(blocks):
        for part, shapes in SHAPES.items():
            name = f"{block}.{part}"
            members = {f"{name}.{role}": (role, shape) for role, shape in shapes.items()}
            indices = tuple(
                add(site, "linear", role, shape, LINEAR) for site, (role, shape) in members.items()
            )
            sites.append(Site(name, "subblock", part, members=tuple(members)))
            if bypass:
                lists[name] = (DENSE, BYPASS)
                bypasses.append(Bypass(name, indices, 0, float(rng.lognormal(-2.0, 1.0))))
    problem = Problem(tuple(groups), tuple(bypasses), fixed_cost=500)
    sketch = Sketch(
        "synthetic", "llama", tuple(sites), {}, "float16",
        tuple((site.name,) for site in sites), blocks, 2, 32, 64, 192, 1024,
    )  # fmt: skip
    classes = {
        g.name: tuple(option_class(spec, sketch[g.name].kind) for spec in lists[g.name])
        for g in groups
    }
    roles = {site.name: site.role for site in sites}

    by_class = {"w2": 4.5, "w3": 2.8, "sparse-w4": 3.5, "rank-w8": 3.0}
    by_class = {name: value * rng.lognormal(0, 0.3) for name, value in by_class.items()}
    by_role = {role: rng.lognormal(0, 0.3) for role in sorted(set(roles.values()))}
    table = problem.score.copy()
    for row, group in enumerate(groups):
        site = by_role[roles[group.name]] * rng.lognormal(0, 0.5)
        for column, name in enumerate(classes[group.name]):
            table[row, column] *= site * by_class.get(name, 2.0) * rng.lognormal(0, 0.2)
    dropped = problem.bypass_score * rng.lognormal(0.7, 0.5, len(bypasses))
    pairs = rng.normal(size=(len(groups) + len(bypasses),) * 2)
    space = OptionSpace(sketch, lists)

    def exact(plan: Plan) -> int:
        return problem.solution(*context.decisions(space.encode(plan))).cost - 7

    def measure(params: dict[str, int]) -> float:
        choice, bypassed = context.decisions(params)
        active = problem.active(bypassed)
        parts = np.concatenate(
            [
                np.where(active, table[np.arange(len(groups)), choice], 0.0),
                np.where(bypassed, dropped, 0.0),
            ]
        )
        total, roots = parts.sum(), np.sqrt(parts)
        return float(total * (1 + total / 2) * math.exp(0.02 * (roots @ pairs @ roots) / total))

    weights = sum(math.prod(site.shape) for site in sites)
    context = SearchContext(
        space, problem, classes, roles, int(weights * bits / 8), exact,
        lambda plan: "+".join(sorted({option_kind(spec) for spec in plan.layers.values()})),
        schedule or Schedule(),
    )  # fmt: skip
    return World(context, measure)


@dataclass(frozen=True)
class Trial:
    logical: int
    params: dict[str, int]
    state: str
    loss: float | None
    origin: str = ""
    details: dict = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.logical


def run(world: World, trials: int, seed: int = 0) -> list[Trial]:
    told: list[Trial] = []
    for index in range(trials):
        proposal = propose(Ask(index, SeedTree(seed), [world.context], told))
        if proposal is None:
            break
        kl = world.measure(proposal.params)
        told.append(
            Trial(index, proposal.params, "COMPLETE", kl, proposal.origin, proposal.details)
        )
    return told


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def history(world) -> list[Trial]:
    return run(world, 36)


def test_the_order_of_the_schedule(world, history):
    context = world.context
    origins = [trial.origin for trial in history]
    count = len(context.uniforms)
    assert 2 <= count <= context.schedule.uniforms
    assert origins[:count] == ["uniform"] * count
    assert context.kinds == ("quantized", "sparse", "low-rank", "bypassed")
    assert origins[count : count + 4] == [f"probe:{kind}" for kind in context.kinds]
    scheduled = ["knapsack:score", "knapsack", "ladder", "ladder", "ladder"]
    assert origins[count + 4 : count + 9] == scheduled
    moves = {"knapsack", "step", "mutation", "crossover"}
    assert moves <= set(origins[count + 9 :]) <= moves | {"alone"}


def test_quantization_alone_is_tried_once_where_the_best_plan_of_a_smaller_budget_mixes(world):
    context = replace(world.context, schedule=replace(world.context.schedule, at_budget=0.2))
    told = run(World(context, world.measure), 60)
    alone = [trial for trial in told if trial.origin == "alone"]
    budgets = [trial.details["budget"] for trial in alone]
    assert 0 < len(budgets) == len(set(budgets))
    for trial, budget in zip(alone, budgets, strict=True):
        plan = context.space.decode(trial.params)
        choice, bypassed = context.decisions(trial.params)
        assert context.problem.solution(choice, bypassed).cost <= budget < context.budget_bytes
        assert {option_kind(plan[g.name]) for g in context.problem.groups} == {"quantized"}
        before = [
            t
            for t in told[: trial.number]
            if context.problem.solution(*context.decisions(t.params)).cost <= budget
        ]
        best = min(before, key=lambda t: t.loss)
        assert context.family_of(context.space.decode(best.params)) != "quantized"


def test_uniform_baselines_use_one_option_and_the_largest_embedding_that_fits(world):
    context, problem = world.context, world.problem
    linear = [i for i, group in enumerate(problem.groups) if group.name != "embedding"]
    pairs = []
    for solution in context.uniforms:
        tokens = {context.space.lists[problem.groups[i].name][solution.choice[i]] for i in linear}
        assert len(tokens) == 1
        assert not solution.bypassed.any()
        plan = context.space.decode(context.params(solution))
        assert context.exact_bytes(plan) <= context.budget_bytes
        pairs.append((tokens.pop().token(), int(solution.choice[0]), solution))
    firsts = {}
    for token, embedding, solution in pairs:
        firsts.setdefault(token, embedding)
        assert embedding in (firsts[token], firsts[token] - 1)
        if embedding == firsts[token] < len(EMBEDDING) - 1:
            larger = solution.choice.copy()
            larger[0] += 1
            plan = context.space.decode(
                context.params(problem.solution(larger, solution.bypassed))
            )
            assert context.exact_bytes(plan) > context.budget_bytes
    assert len(firsts) > 1
    hopeless = make_world(schedule=Schedule(hopeless=1e9, uniforms=99)).context
    assert len(hopeless.uniforms) > len(context.uniforms)


@pytest.mark.parametrize("kind", ["quantized", "sparse", "low-rank", "bypassed"])
def test_probes_belong_to_their_family(world, kind):
    context, problem = world.context, world.problem
    found = context.probe(problem, kind)
    assert found.cost <= context.budget_bytes
    plan = context.space.decode(context.params(found))
    kinds = [option_kind(spec) for spec in plan.layers.values()]
    if kind == "quantized":
        assert set(kinds) <= {"quantized", "dense"}
        assert not any(plan[site.name] == DENSE for site in context.space.sketch.weights())
    elif kind == "bypassed":
        assert found.bypassed.any()
    else:
        assert kinds.count(kind) >= round(0.1 * len(problem.groups))


def test_every_plan_is_new_canonical_and_within_the_budget(world, history):
    context = world.context
    assert len(history) == 36
    assert len({tuple(sorted(trial.params.items())) for trial in history}) == 36
    for trial in history:
        plan = context.space.decode(trial.params)
        assert context.space.encode(plan) == trial.params
        assert context.exact_bytes(plan) <= context.budget_bytes


def test_most_refinements_spend_the_whole_budget(world, history):
    costs = [
        world.problem.solution(*world.context.decisions(trial.params)).cost for trial in history
    ]
    refined = [cost / world.context.budget_bytes for cost in costs[len(costs) - 20 :]]
    at_budget = sum(share > 0.98 for share in refined)
    assert 10 <= at_budget < 20
    assert min(refined) > 0.4


def test_a_proposal_depends_on_nothing_but_seed_number_and_earlier_trials(world, history):
    context = replace(world.context)  # no cached properties
    for index in (0, 5, 12, 25):
        found = propose(Ask(index, SeedTree(0), [context], list(reversed(history))))
        assert found.params == history[index].params
        assert found.origin == history[index].origin
        assert found.logical == index
    again = [propose(Ask(35, SeedTree(seed), [context], history)).params for seed in (1, 2, 3)]
    assert len({tuple(sorted(params.items())) for params in again}) == 3


def test_stopped_and_failed_trials_are_tolerated(world, history):
    told = [
        replace(trial, state="PRUNED") if i % 3 == 1
        else replace(trial, state="FAIL", loss=None) if i % 3 == 2
        else trial
        for i, trial in enumerate(history)
    ]  # fmt: skip
    found = propose(Ask(36, SeedTree(0), [world.context], told))
    assert found is not None
    assert all(found.params != trial.params for trial in told)
    best = best_within(world.context, told, world.context.budget_bytes)
    assert best.state == "COMPLETE"
    nothing = [replace(trial, state="FAIL", loss=None) for trial in history]
    assert propose(Ask(36, SeedTree(0), [world.context], nothing)) is not None


def test_an_exhausted_space_ends():
    world = make_world(blocks=1, bypass=False)
    lists = {name: options[:1] for name, options in world.context.space.lists.items()}
    groups = tuple(replace(g, cost=g.cost[:1], score=g.score[:1]) for g in world.problem.groups)
    context = replace(
        world.context,
        space=OptionSpace(world.context.space.sketch, lists),
        problem=Problem(groups, fixed_cost=500),
    )
    first = propose(Ask(0, SeedTree(0), [context], []))
    told = [Trial(0, first.params, "COMPLETE", 1.0)]
    assert propose(Ask(1, SeedTree(0), [context], told)) is None


def test_a_budget_that_cannot_be_met_is_refused(world):
    context = replace(world.context, budget_bytes=smallest(world.problem).cost - 1)
    with pytest.raises(InfeasibleError):
        propose(Ask(0, SeedTree(0), [context], []))


def test_a_loose_budget_and_a_space_without_bypasses_work():
    world = make_world(blocks=2, bypass=False)
    context = replace(world.context, budget_bytes=largest(world.problem).cost * 2)
    loose = World(context, world.measure)
    assert "bypassed" not in context.kinds
    told = [propose(Ask(0, SeedTree(0), [context], []))]
    assert told[0].origin == "uniform"
    assert world.measure(context.params(largest(loose.problem))) < 1e-3


def test_a_step_changes_about_as_many_groups_as_asked(world):
    problem, budget = world.problem, world.context.budget_bytes
    around = solve(problem, budget)
    rng = np.random.default_rng(0)
    shaken = problem.with_scores(
        problem.score * rng.lognormal(0, 0.5, problem.score.shape), problem.bypass_score
    )
    free = changes(problem, solve(shaken, budget), around)
    for size in (3, 10):
        found = step(shaken, shaken.solution(around.choice, around.bypassed), budget, size)
        assert found.cost <= budget
        assert size / 3 <= changes(problem, found, around) <= min(3 * size, free)


def test_the_price_of_a_byte_falls_with_the_budget(world):
    budget = world.context.budget_bytes
    prices = [marginal_price(world.problem, int(share * budget)) for share in (0.6, 0.8, 1.0)]
    assert prices[0] > prices[1] > prices[2] > 0
    assert marginal_price(world.problem, smallest(world.problem).cost) == 0.0


def test_refinement_beats_the_first_joint_plan_on_average():
    gains = []
    for seed in range(3):
        world = make_world(seed, blocks=6)
        context = world.context
        history = run(world, 60, seed)
        best = best_within(context, history, context.budget_bytes).loss
        assert best < min(trial.loss for trial in history if trial.origin == "uniform")
        corrected = next(trial.loss for trial in history if trial.origin == "knapsack")
        scored = world.measure(context.params(solve(world.problem, context.budget_bytes)))
        assert best <= min(corrected, scored)
        gains.append((best / corrected, best / scored))
    assert np.mean(gains, axis=0).max() < 0.97, gains
