"""Optuna's samplers by name: the budget, the generations, and that no score is looked at."""

from dataclasses import replace

import numpy as np
import optuna
import pytest

from autocomp.core.errors import InfeasibleError
from autocomp.core.registry import SAMPLERS
from autocomp.core.seeds import SeedTree
from autocomp.search.ask import Ask
from autocomp.search.knapsack import Limit, largest, smallest
from autocomp.search.samplers.baselines import NSGAII, NSGAIII, RANDOM, TPE, downgraded
from autocomp.testing.samplers import ToyModel, run_sampler

NAMES = ("random", "tpe", "nsgaii", "nsgaiii")


@pytest.fixture(scope="module")
def model() -> ToyModel:
    return ToyModel(blocks=4)


def test_what_fits_is_left_alone(model):
    problem = model.contexts[0].problem
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    whole = problem.solution(largest(problem).choice, np.zeros(len(problem.bypasses), bool))
    found = downgraded(problem, whole, whole.cost, rng)
    assert found.choice.tolist() == whole.choice.tolist()
    assert rng.bit_generator.state == state, "nothing was drawn"


def test_downgrades_only_make_smaller_and_drop_sub_blocks_last(model):
    problem = model.contexts[0].problem
    kept = np.zeros(len(problem.bypasses), dtype=bool)
    whole = problem.solution(np.array([len(g.cost) - 1 for g in problem.groups]), kept)
    least_kept = problem.solution(np.zeros(len(problem.groups), dtype=int), kept)
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.9):
        budget = int(least_kept.cost + share * (whole.cost - least_kept.cost))
        found = downgraded(problem, whole, budget, rng)
        assert found.cost <= budget
        assert (found.choice <= whole.choice).all()
        assert not found.bypassed.any()
        assert found.cost > budget - problem.cost.max(), "no more than one step too far"
    below = least_kept.cost - 1
    found = downgraded(problem, whole, below, rng)
    assert found.cost <= below
    assert found.bypassed.sum() == 1
    assert downgraded(problem, whole, smallest(problem).cost, rng).bypassed.all()
    assert downgraded(problem, whole, smallest(problem).cost - 1, rng) is None


def test_downgrades_hold_a_second_limit(model):
    """A resource of which every step costs one: half of all steps may be taken."""
    problem = model.contexts[0].problem
    steps = np.zeros_like(problem.cost) + np.arange(problem.cost.shape[1])
    bound = int(np.mean([len(group.cost) - 1 for group in problem.groups]) * len(steps) / 2)
    limit = Limit("steps", steps, np.zeros(len(problem.bypasses), dtype=int), 0, bound)
    limited = replace(problem, limits=(limit,))
    whole = limited.solution(
        np.array([len(g.cost) - 1 for g in problem.groups]),
        np.zeros(len(problem.bypasses), dtype=bool),
    )
    assert whole.used[0] > bound
    found = downgraded(limited, whole, whole.cost, np.random.default_rng(0))
    assert found.used == (bound,)


def test_no_proposal_looks_at_a_score(model):
    """Scores that say the opposite change nothing; neither does leaving them out of the fit."""
    (context,) = model.contexts
    reversed_scores = context.problem.with_scores(
        np.where(np.isfinite(context.problem.score), -context.problem.score, np.inf),
        -context.problem.bypass_score,
    )
    other = replace(context, problem=reversed_scores)
    for name in NAMES:
        told = run_sampler(SAMPLERS[name], model, 14)
        ask = Ask(14, SeedTree(0), [context], told)
        one, two = SAMPLERS[name](ask), SAMPLERS[name](replace(ask, contexts=[other]))
        assert one.params == two.params, name


def test_tpe_beats_random_on_average():
    """One block, so that forty trials can tell what nine parameters do: measured 0.71 ± 0.07."""
    gains = []
    for seed in range(10):
        model = ToyModel(blocks=1, bypass=False, seed=seed)
        best = [
            min(record.loss for record in run_sampler(sampler, model, 40, seed))
            for sampler in (TPE, RANDOM)
        ]
        gains.append(np.log(best[0] / best[1]))
    assert np.mean(gains) < np.log(0.9), gains


@pytest.mark.parametrize("sampler", [NSGAII, NSGAIII], ids=["nsgaii", "nsgaiii"])
def test_a_generation_descends_from_the_best_of_the_one_before(sampler):
    """Nothing is kept between asks, and yet the third fifty are better than the first."""
    model = ToyModel(bits=16.0, bypass=False)
    told = run_sampler(RANDOM, model, 100)
    losses = [record.loss for record in told]
    asked = [
        model.loss(sampler(Ask(100, SeedTree(seed), model.contexts, told)).plan)
        for seed in range(12)
    ]
    assert np.mean(np.log(asked)) < np.mean(np.log(losses)) - 0.2
    assert run_sampler(sampler, model, 3)[-1].params == told[2].params, "the first is random"


def test_stopped_trials_make_no_generation():
    """Fifty told trials of which half were stopped leave the first generation open."""
    model = ToyModel(bits=16.0, bypass=False)
    told = run_sampler(RANDOM, model, 50, states=("COMPLETE", "PRUNED"))
    ask = Ask(50, SeedTree(0), model.contexts, told)
    assert NSGAII(ask).params == RANDOM(ask).params


def test_a_budget_that_cannot_be_met_is_refused(model):
    (context,) = model.contexts
    small = replace(context, budget_bytes=smallest(context.problem).cost - 1)
    with pytest.raises(InfeasibleError, match="cannot be met"):
        RANDOM(Ask(0, SeedTree(0), [small], []))


def test_a_space_of_one_plan_ends():
    model = ToyModel(blocks=1, bypass=False)
    (context,) = model.contexts
    least = replace(context, budget_bytes=smallest(context.problem).cost)
    first = RANDOM(Ask(0, SeedTree(0), [least], []))
    told = [replace(model.record(first))]
    assert RANDOM(Ask(1, SeedTree(0), [least], told)) is None


def test_variants_are_one_more_integer():
    told = run_sampler(RANDOM, ToyModel(variant=True), 24)
    count = sum(record.params["variant"] for record in told)
    assert 6 <= count <= 18, "12 ± 2.4 of 24 are of the second variant"


def test_optuna_says_nothing_and_is_left_as_it_was(model, capfd):
    level = optuna.logging.get_verbosity()
    run_sampler(NSGAIII, model, 2)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == level
