"""Run the shipped sampler contract over every registered sampler."""

import pytest

from autocomp.core.registry import SAMPLERS
from autocomp.testing.samplers import ToyModel, check_sampler, run_sampler

FEW = {"gp": 12, "evopress": 1}
"""Trials of samplers that take long; GP draws ten at random first, EvoPress converges in one."""


@pytest.mark.parametrize("variant", [False, True], ids=["base", "variants"])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_proposals_are_new_canonical_within_the_budget_and_pure(name, variant):
    check_sampler(SAMPLERS[name], ToyModel(variant=variant), FEW.get(name, 24))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_stopped_refused_failed_and_running_trials_are_tolerated(name):
    model = ToyModel()
    states, trials = ("COMPLETE", "PRUNED", "FAIL", "RUNNING"), FEW.get(name, 24)
    told = run_sampler(SAMPLERS[name], model, trials, states=states)
    assert len({record.digest for record in told}) == trials


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_line_that_a_list_shows(name):
    assert SAMPLERS[name].__doc__
