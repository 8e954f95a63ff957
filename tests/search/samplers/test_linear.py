"""Steps by the gradient: the knapsack around a plan, how far it is trusted, and what it finds."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from autocomp.core.plan import Plan
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import LayerSpec
from autocomp.search.ask import Ask, Linearisation
from autocomp.search.context import Schedule, SearchContext
from autocomp.search.correction import fit, option_class
from autocomp.search.problem import Group, Problem
from autocomp.search.samplers._linear import (
    LINEAR,
    Gradient,
    Trust,
    TrustRegion,
    neighbourhood,
    to_read,
    weights,
)
from autocomp.search.samplers.auto import propose
from autocomp.search_spaces._options import OptionSpace

TOKENS = ("gptq-w2g64", "gptq-w3g64", "gptq-w4g64", "gptq-w5g64")
SITES, WIDTH, WEIGHTS = 40, 6, 10_000


class Landscape:
    """A model whose loss is q + q²/2, with q = ½ eᵀ F e of the errors e of all sites together.

    A site's score and pairs know its own block of F, as the search does; the products of sites,
    which decide as much, only the gradient knows.
    """

    def __init__(self, seed: int = 0, bits: float = 3.2) -> None:
        rng = np.random.default_rng(seed)
        names = [f"block.{i}" for i in range(SITES)]
        self.names = names
        factor = rng.normal(size=(SITES * WIDTH, SITES * WIDTH)) / np.sqrt(SITES * WIDTH)
        scale = np.repeat(rng.lognormal(0, 0.7, SITES), WIDTH)
        self.fisher = (factor * scale) @ (factor * scale).T
        sizes = np.array([4.0**-bits for bits in (2, 3, 4, 5)]) ** 0.5
        self.errors = 3 * sizes[None, :, None] * rng.normal(size=(SITES, len(TOKENS), WIDTH))
        blocks = [self.fisher[self._at(i), self._at(i)] for i in range(SITES)]
        tables = [0.5 * e @ block @ e.T for e, block in zip(self.errors, blocks, strict=True)]
        cost = np.array([WEIGHTS * bits // 8 for bits in (2, 3, 4, 5)])
        groups = [
            Group(name, cost, table.diagonal().copy())
            for name, table in zip(names, tables, strict=True)
        ]
        sites = tuple(Site(name, "linear", "down_proj", (100, 100)) for name in names)
        sketch = Sketch(
            "toy", "llama", sites, {}, "float16", tuple((n,) for n in names), 1, 1, 1, 100, 1, 1
        )
        specs = tuple(map(LayerSpec.parse, TOKENS))
        space = OptionSpace(sketch, dict.fromkeys(names, specs))
        problem = Problem(tuple(groups))
        self.context = SearchContext(
            space=space,
            problem=problem,
            classes=dict.fromkeys(names, tuple(map(option_class, specs))),
            roles=dict.fromkeys(names, "down_proj"),
            budget_bytes=int(SITES * WEIGHTS * bits / 8),
            exact_bytes=lambda plan: problem.solution(*self.decisions(plan)).cost,
            family_of=lambda plan: "quantized",
            schedule=Schedule(uniforms=2, ladder=1),
            pairs={
                name: {
                    o: dict(zip(TOKENS, row.tolist(), strict=True))
                    for o, row in zip(TOKENS, table, strict=True)
                }
                for name, table in zip(names, tables, strict=True)
            },
        )

    def _at(self, site: int) -> slice:
        return slice(site * WIDTH, (site + 1) * WIDTH)

    def decisions(self, plan: Plan):
        return self.context.decisions(self.context.space.encode(plan))

    def error(self, plan: Plan) -> np.ndarray:
        choice, _ = self.decisions(plan)
        return self.errors[np.arange(SITES), choice].ravel()

    def loss(self, plan: Plan) -> float:
        error = self.error(plan)
        q = 0.5 * error @ self.fisher @ error
        return float(q + q * q / 2)

    def linearised(self, plan: Plan) -> Linearisation:
        error = self.error(plan)
        q = 0.5 * error @ self.fisher @ error
        slope = (1 + q) * (self.fisher @ error).reshape(SITES, WIDTH)
        own = error.reshape(SITES, WIDTH)
        options = {
            name: {
                t: float(slope[i] @ (e - own[i]))
                for t, e in zip(TOKENS, self.errors[i], strict=True)
            }
            for i, name in enumerate(self.names)
        }
        return Linearisation(float(q + q * q / 2), options, {})


@dataclass
class Trial:
    number: int
    params: dict[str, int] = field(default_factory=dict)
    loss: float | None = None
    origin: str = LINEAR
    details: dict = field(default_factory=dict)
    state: str = "COMPLETE"

    @property
    def logical(self) -> int:
        return self.number


class Converged:
    """An oracle whose gradients lead nowhere from plans that use more than most of a budget."""

    pool, parts = 0, 4

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape

    def losses(self, plan: Plan, units) -> tuple[float, ...]:
        return ()

    def linearised(self, plan: Plan, part: int) -> Linearisation:
        found = self.landscape.linearised(plan)
        if spent(self.landscape, plan) < 0.97:
            return found
        options = {name: dict.fromkeys(values, 0.0) for name, values in found.options.items()}
        return Linearisation(found.loss, options, {})


class Oracle:
    """Exact first-order changes of a landscape, which notes what it was asked for."""

    pool, parts = 0, 4

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape
        self.asked: set[tuple[str, int]] = set()

    def losses(self, plan: Plan, units) -> tuple[float, ...]:
        return ()

    def linearised(self, plan: Plan, part: int) -> Linearisation:
        self.asked.add((plan.digest, part))
        return self.landscape.linearised(plan)


def run(
    landscape: Landscape, trials: int, moves: tuple[str, ...] = (), oracle=None
) -> list[Trial]:
    told: list[Trial] = []
    oracle = oracle or Oracle(landscape)
    for index in range(trials):
        found = propose(Ask(index, SeedTree(0), [landscape.context], told, oracle, moves))
        assert found is not None
        loss = landscape.loss(found.plan)
        told.append(Trial(index, dict(found.params), loss, found.origin, dict(found.details)))
    return told


def solution(landscape: Landscape, plan: Plan):
    return landscape.context.problem.solution(*landscape.decisions(plan))


def spent(landscape: Landscape, plan: Plan) -> float:
    """Return the share of the budget that a plan takes."""
    return solution(landscape, plan).cost / landscape.context.budget_bytes


def test_a_single_change_is_predicted_where_the_loss_is_quadratic():
    landscape = Landscape()
    context = landscape.context
    uniform = context.space.decode(dict.fromkeys(landscape.names, 1))
    near = neighbourhood(
        context, fit(context.effects, []), solution(landscape, uniform),
        [Gradient(landscape.linearised(uniform), solution(landscape, uniform))],
    )  # fmt: skip
    before = landscape.loss(uniform)
    q = np.sqrt(1 + 2 * before) - 1
    for name, option in (("block.3", 2), ("block.17", 3), ("block.30", 0)):
        other = context.space.decode(dict.fromkeys(landscape.names, 1) | {name: option})
        terms = near.terms(solution(landscape, other))
        row = landscape.names.index(name)
        factor = context.effects.log_prior.reshape(SITES, -1)[row, option]
        # The curvature is that of q by the prior factor of the option; the loss bends by 1 + q.
        pairs = context.pairs[name]
        own, new = TOKENS[1], TOKENS[option]
        moved = pairs[new][new] + pairs[own][own] - 2 * pairs[new][own]
        assert terms["plain"] == 0
        (bend,) = terms["curvature"].values()
        assert bend / moved >= np.exp(factor)  # the mean of a lognormal factor
        exact = terms["first"] + (1 + q) * moved
        assert landscape.loss(other) - before == pytest.approx(exact, abs=0.51 * exact**2 + 1e-9)
    here = near.problem(np.ones(1 + SITES)).solution(*landscape.decisions(uniform))
    assert here.score == 0


def test_what_has_no_gradient_changes_by_its_corrected_score():
    landscape = Landscape()
    context = landscape.context
    uniform = context.space.decode(dict.fromkeys(landscape.names, 1))
    some = landscape.linearised(uniform)
    options = {name: dict(values) for name, values in some.options.items()}
    del options["block.5"]
    del options["block.6"]["gptq-w4g64"]
    correction = fit(context.effects, [])
    here = solution(landscape, uniform)
    gradient = Gradient(Linearisation(some.loss, options, {}), here)
    near = neighbourhood(context, correction, here, [gradient])
    score = correction.apply().score
    assert near.plain[5].tolist() == pytest.approx((score[5] - score[5, 1]).tolist())
    assert not near.first[5].any()
    assert not near.curvature[5].any()
    assert near.plain[6, 2] == pytest.approx(score[6, 2] - score[6, 1])
    assert near.plain[6, 3] == 0
    assert near.first[6, 3] != 0


def test_gradient_steps_find_better_plans_than_scores_do():
    ratios = []
    for seed in range(4):
        landscape = Landscape(seed)
        by_gradient = min(t.loss for t in run(landscape, 16))
        by_score = min(t.loss for t in run(landscape, 16, ("knapsack", "step", "mutation")))
        ratios.append(by_gradient / by_score)
    assert np.exp(np.mean(np.log(ratios))) < 0.95


def test_curvature_that_leaves_no_step_is_doubted_until_there_is_one(monkeypatch):
    monkeypatch.setattr("autocomp.search.samplers._linear.BEND", 16.0)
    told = run(Landscape(3), 8, ("linear",))
    steps = [trial for trial in told if trial.origin == LINEAR]
    assert steps
    assert steps[0].details["promise"] > 0


def test_steps_are_taken_from_the_best_plan_and_their_size_follows_success():
    told = run(Landscape(), 20)
    steps = [trial for trial in told if trial.origin == LINEAR]
    assert len(steps) >= 4
    for trial in steps:
        earlier = [t for t in told if t.number < trial.number]
        best = min(earlier, key=lambda t: (t.loss, t.number))
        assert trial.details["around"] == best.number
        assert trial.details["from"] == best.loss


def test_a_budget_keeps_its_share_where_the_gradient_leads_nowhere():
    landscape = Landscape(bits=3.6)
    schedule = Schedule(uniforms=2, ladder=4, lowest=0.75, at_budget=0.8)
    landscape.context = replace(landscape.context, schedule=schedule)
    told = run(landscape, 32, oracle=Converged(landscape))[8:]
    plans = [landscape.context.space.decode(trial.params) for trial in told]
    assert np.mean([spent(landscape, plan) > 0.97 for plan in plans]) > 0.7


def test_gradients_average_over_parts_and_older_plans_where_nothing_changed():
    landscape = Landscape()
    context = landscape.context
    before = context.space.decode(dict.fromkeys(landscape.names, 1))
    after = context.space.decode(dict.fromkeys(landscape.names, 1) | {"block.2": 2})
    old = Gradient(landscape.linearised(before), solution(landscape, before), 0.5)
    new = Gradient(landscape.linearised(after), solution(landscape, after), 1.0)
    near = neighbourhood(context, fit(context.effects, []), new.plan, [new, old])
    expected = (
        new.around.options["block.9"]["gptq-w4g64"]
        + 0.5 * old.around.options["block.9"]["gptq-w4g64"]
    ) / 1.5
    assert near.first[9, 2] == pytest.approx(expected)
    assert near.first[2, 0] == pytest.approx(new.around.options["block.2"]["gptq-w2g64"])


def step_of(number: int, size: int, loss: float | None, state: str = "COMPLETE", **about) -> Trial:
    details = {"around": 0, "from": 1.0, "budget": 9, "size": size, "promise": 0.1} | about
    return Trial(number, {}, loss, LINEAR, details, state)


def test_the_region_grows_with_kept_promises_and_shrinks_with_broken_ones():
    region = TrustRegion.of(200)
    assert (region.start, region.least, region.most) == (10, 2, 40)
    assert region.size([]) == 10
    assert region.size([step_of(1, 10, 0.92)]) == 16
    assert region.size([step_of(1, 10, 0.97)]) == 10  # better, and less than half of it
    assert region.size([step_of(1, 10, 1.2)]) == 5
    assert region.size([step_of(1, 10, 1.2, "PRUNED")]) == 5
    assert region.size([step_of(1, 10, None, "RUNNING")]) == 5  # not the same step twice
    assert region.size([step_of(1, 40, 0.9)]) == 40
    assert region.size([step_of(1, 3, 1.2)]) == 0


def test_a_new_plan_gets_a_part_of_its_own_and_one_more_where_steps_fail():
    assert to_read([], 7, 8, more=False) == ((7, 0),)
    steps = [step_of(9, 10, 0.9, read=[[7, 0]])]
    assert to_read(steps, 9, 8, more=False) == ((9, 1), (7, 0))
    steps = [step_of(11, 3, 1.2, read=[[9, 1], [7, 0]])]
    assert to_read(steps, 9, 8, more=False) == ((9, 1), (7, 0))
    assert to_read(steps, 9, 8, more=True) == ((9, 2), (9, 1), (7, 0))
    assert to_read([step_of(11, 3, 1.2, read=[[9, 7]])], 9, 8, more=True) == ((9, 0), (9, 7))
    assert to_read(steps, 9, 1, more=True) == ((9, 1), (7, 0))  # the one part has been read
    full = [step_of(15, 3, 1.2, read=[[9, 4], [9, 3], [7, 2], [3, 1]])]
    assert to_read(full, 9, 8, more=True) == ((9, 4), (9, 3), (7, 2), (3, 1))
    assert to_read(full, 15, 8, more=True) == ((15, 5), (9, 4), (9, 3), (7, 2))
    assert weights([(15, 5), (9, 4), (9, 3), (7, 0)]) == [1.0, 0.5, 0.5, 0.25]


def test_trust_is_learned_a_site_at_a_time():
    nothing = Trust.of([], 5)
    assert nothing.mean.tolist() == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert nothing.covariance[1, 1] > nothing.covariance[1, 2] > 0

    def steps(group: int, bend: float) -> list[Trial]:
        curvature = {str(group): 0.05, "4": 0.01}
        loss = 1.0 - 0.1 + bend * 0.05 + 2.0 * 0.01
        return [step_of(9, 2, loss, first=-0.1, curvature=curvature, plain=0.0)]

    steep, flat = Trust.of(steps(0, 4.0), 5), Trust.of(steps(0, 0.5), 5)
    assert steep.mean[1] > 2.6  # a site that bends more than its score says
    assert flat.mean[1] < 1.5
    assert 2.0 < steep.mean[2] < steep.mean[1]  # others are suspected, a little
    assert steep.covariance[1, 1] < 0.6 * nothing.covariance[1, 1]
    stopped = [step_of(9, 2, 5.0, "PRUNED", first=-1.0, curvature={"0": 0.1}, plain=0.0)]
    assert Trust.of(stopped, 5).mean.tolist() == nothing.mean.tolist()
    draws = np.array([steep.draw(np.random.default_rng(i)) for i in range(400)])
    assert (draws >= 0).all()
    assert draws.mean(axis=0) == pytest.approx(steep.mean, abs=0.2)
