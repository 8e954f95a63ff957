"""Which variant gets the next trial, on problems whose true KL is known."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest

from autocomp.core.plan import Plan
from autocomp.core.seeds import SeedTree
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import LayerSpec
from autocomp.search.ask import Ask
from autocomp.search.context import Schedule, SearchContext
from autocomp.search.correction import option_class
from autocomp.search.knapsack import Group, Problem, smallest
from autocomp.search.samplers.auto import propose
from autocomp.search.samplers.outlook import correction_of
from autocomp.search_spaces._options import OptionSpace
from autocomp.search_spaces._variants import VariantSpace

TOKENS = ("gptq-w2g64", "gptq-w3g64", "gptq-w4g64", "gptq-w8g64")
BITS = np.array([2, 3, 4, 8])
TRUE_FACTORS = np.array([9.0, 5.0, 3.0, 3.0])
GROUPS = 24
WEIGHTS = 10_000


@dataclass(frozen=True)
class Trial:
    logical: int
    params: dict[str, int]
    loss: float
    origin: str
    state: str = "COMPLETE"
    details: dict = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.logical


def contexts(*variants: tuple[float, float], bits: float = 3.5) -> list[SearchContext]:
    """Return the base and variants given as (share of its size, KL before compression)."""
    rng = np.random.default_rng(0)
    scale = 0.02 * rng.lognormal(0, 0.7, GROUPS)
    names = tuple(f"block.{i}" for i in range(GROUPS))
    sites = tuple(Site(name, "linear", "down_proj", (100, 100)) for name in names)
    sketch = Sketch(
        "toy",
        "llama",
        sites,
        {},
        "float16",
        tuple((name,) for name in names),
        1,
        1,
        1,
        100,
        100,
        1,
    )
    specs = tuple(LayerSpec.parse(token) for token in TOKENS)
    lists = dict.fromkeys(names, specs)
    labels = ("base", *(f"v{i}" for i in range(len(variants))))
    found = []
    for index, (share, loss) in enumerate([(1.0, 0.0), *variants]):
        groups = tuple(
            Group(
                name,
                (share * WEIGHTS * BITS / 8).astype(np.int64),
                size * 4.0 ** -(BITS - 2.0) * share,
            )
            for name, size in zip(names, scale, strict=True)
        )
        problem = Problem(groups, fixed_cost=100, fixed_score=loss)
        space = VariantSpace(OptionSpace(sketch, lists), labels, labels[index])
        context = SearchContext(
            space=space,
            problem=problem,
            classes=dict.fromkeys(names, tuple(option_class(spec) for spec in specs)),
            roles=dict.fromkeys(names, "down_proj"),
            budget_bytes=int(GROUPS * WEIGHTS * bits / 8),
            exact_bytes=partial(exact_bytes, problem, space),
            family_of=lambda plan: plan.variant,
            schedule=Schedule(uniforms=3, ladder=2),
            variant=index,
        )
        found.append(context)
    return found


def exact_bytes(problem: Problem, space: VariantSpace, plan: Plan) -> int:
    params = space.encode(plan)
    choice = np.array([params[group.name] for group in problem.groups])
    return problem.solution(choice, np.zeros(0, dtype=bool)).cost


def measure(found: list[SearchContext], params: dict[str, int]) -> float:
    context = found[params["variant"]]
    choice, _ = context.decisions(params)
    rows = np.arange(GROUPS)
    parts = context.problem.score[rows, choice] * TRUE_FACTORS[choice]
    return float(context.problem.fixed_score + parts.sum())


def run(found: list[SearchContext], trials: int) -> list[Trial]:
    told: list[Trial] = []
    for index in range(trials):
        proposal = propose(Ask(index, SeedTree(0), found, told))
        assert proposal is not None
        params = dict(proposal.params)
        told.append(Trial(index, params, measure(found, params), proposal.origin))
    return told


def opening(found: list[SearchContext]) -> int:
    """Return the number of scheduled trials."""
    base = found[0]
    return len(base.uniforms) + len(base.kinds) + 1 + len(base.budgets) + len(found) - 1


def refined(found: list[SearchContext], told: list[Trial]) -> Counter:
    """Count the variants of the trials after the opening."""
    return Counter(trial.params["variant"] for trial in told[opening(found) :])


@pytest.fixture(scope="module")
def searched():
    """A variant that is worth it, and one that costs more KL than anything else."""
    found = contexts((0.8, 0.01), (0.7, 3.0))
    return found, run(found, 40)


def test_the_base_opens_and_every_variant_is_measured_before_the_refinement(searched):
    found, told = searched
    start = opening(found)
    scheduled = ("uniform", "probe:quantized", "knapsack:score", "ladder")
    opened = [trial for trial in told if trial.origin in scheduled]
    assert len(opened) >= 5
    assert {trial.params["variant"] for trial in opened} == {0}
    assert {trial.params["variant"] for trial in told[:start]} == {0, 1, 2}
    assert told[start - 1].origin == "variant"


def test_the_best_variant_gets_most_and_a_hopeless_one_next_to_nothing(searched):
    found, told = searched
    count = refined(found, told)
    assert count[1] > 0.7 * count.total()
    assert count[2] <= 0.2 * count.total()
    best = min(told, key=lambda trial: trial.loss)
    assert best.params["variant"] == 1


def test_a_worse_variant_leaves_the_base_its_trials():
    found = contexts((0.99, 0.5))
    told = run(found, 30)
    count = refined(found, told)
    assert count[0] > 0.7 * count.total()
    assert min(told, key=lambda trial: trial.loss).params["variant"] == 0


def test_a_proposal_depends_on_nothing_but_seed_number_and_earlier_trials(searched):
    found, told = searched
    fresh = [replace(context) for context in found]  # no cached properties
    for index in (0, 8, 15, 30):
        again = propose(Ask(index, SeedTree(0), fresh, list(reversed(told))))
        assert again.params == told[index].params
        assert again.origin == told[index].origin


def test_a_variant_that_cannot_hold_a_budget_gets_no_trial_there():
    """Every refinement is at the smaller of the two budgets, where the variant does not fit."""
    found = contexts((1.2, 0.0))
    found = [replace(c, schedule=replace(c.schedule, at_budget=0.0)) for c in found]
    small = found[0].budgets[1]
    assert small < smallest(found[1].problem).cost < found[0].budget_bytes
    count = refined(found, run(found, 20))
    assert count[0] == count.total() > 5


def test_what_the_base_taught_corrects_a_variant_that_was_never_measured(searched):
    found, told = searched
    base = [trial for trial in told if trial.params["variant"] == 0]
    told_of_two_bits = next(trial for trial in told if trial.params["variant"] == 1)
    solution = found[1].problem.solution(*found[1].decisions(told_of_two_bits.params))
    blind = correction_of(found[1], base).predict(solution)
    informed = correction_of(found[1], base, prior=correction_of(found[0], base))
    errors = [
        abs(np.log(value / told_of_two_bits.loss)) for value in (blind, informed.predict(solution))
    ]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.1
