"""Our samplers in a plain Optuna study."""

import doctest
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import optuna
import pytest

from autocomp.config import load_config
from autocomp.core.errors import ConfigError
from autocomp.core.registry import SAMPLERS
from autocomp.core.seeds import SeedTree
from autocomp.search.ask import Ask
from autocomp.search.knapsack import smallest
from autocomp.search.samplers import adapter
from autocomp.search.samplers.adapter import AutocompSampler, contexts_of
from autocomp.testing.samplers import ToyModel, run_sampler

TRIALS = 20


@pytest.fixture(autouse=True)
def quiet():
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


def objective(model: ToyModel, sampler: AutocompSampler) -> Callable:
    def measure(trial):
        ranges = sampler.distributions
        plan = sampler.plan({n: trial.suggest_int(n, 0, ranges[n].high) for n in ranges})
        return model.loss(plan), model.owner(plan).exact_bytes(plan)

    return measure


def run(model: ToyModel, name: str, trials: int = TRIALS, seed: int = 0) -> optuna.Study:
    sampler = AutocompSampler(model.contexts, seed=seed, sampler=name)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    study.optimize(objective(model, sampler), n_trials=trials)
    return study


def test_the_example_of_the_class():
    (test,) = (t for t in doctest.DocTestFinder().find(adapter) if t.examples)
    outcome = doctest.DocTestRunner().run(test)
    assert test.name.endswith("AutocompSampler")
    assert (outcome.attempted, outcome.failed) == (7, 0)


def test_contexts_of_a_real_model(trained_llama_path, tmp_path):
    settings = {
        "model": str(trained_llama_path),
        "data.window": 64,
        "data.calibration_tokens": 128,
        "data.rungs": (128,),
        "data.heldout_tokens": 64,
        "space.linear": ("rtn-w3g64", "rtn-w8g64"),
        "space.embedding": ("rtn-w4g64", "rtn-w8g64"),
        "budget.max_bytes": 45_000,
    }
    (context,) = contexts_of(load_config(None, settings), tmp_path)
    sampler = AutocompSampler([context], seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    trial = study.ask(dict(sampler.distributions))
    plan = sampler.plan(trial.params)
    assert context.space.encode(plan) == trial.params
    assert 30_000 < context.exact_bytes(plan) <= 45_000
    assert (tmp_path / "scores.json").exists()


def test_it_beats_random_within_the_budget():
    for seed in range(3):
        model = ToyModel(seed=seed)
        (context,) = model.contexts
        best = {}
        for name in ("auto", "random"):
            study = run(model, name, seed=seed)
            assert len(study.trials) == TRIALS
            assert all(trial.values[1] <= context.budget_bytes for trial in study.trials)
            assert len({frozenset(trial.params.items()) for trial in study.trials}) == TRIALS
            best[name] = min(trial.values[0] for trial in study.trials)
        assert best["auto"] < 0.8 * best["random"], seed


@pytest.mark.parametrize("variant", [False, True])
def test_proposals_are_those_of_our_own_search(variant):
    model = ToyModel(variant=variant)
    study = run(model, "random")
    ours = run_sampler(SAMPLERS["random"], model, TRIALS)
    assert [trial.params for trial in study.trials] == [record.params for record in ours]


def test_a_study_goes_on_where_it_was_killed(tmp_path):
    """A second process, with a sampler of its own, on the storage of the first."""
    model = ToyModel()
    whole = [trial.params for trial in run(model, "auto", 16).trials]
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "plain.log"))
    storage = optuna.storages.JournalStorage(backend)
    optuna.create_study(study_name="plain", storage=storage, directions=["minimize", "minimize"])
    for trials in (9, 7):
        sampler = AutocompSampler(ToyModel().contexts, seed=0)
        study = optuna.load_study(study_name="plain", storage=storage, sampler=sampler)
        study.optimize(objective(model, sampler), n_trials=trials)
    assert [trial.params for trial in study.trials] == whole


def test_running_trials_are_seen():
    """Trials that were asked and not told: their plans are not proposed again."""
    model = ToyModel()
    sampler = AutocompSampler(model.contexts, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    asked = [study.ask(dict(sampler.distributions)) for _ in range(6)]
    assert len({frozenset(trial.params.items()) for trial in asked}) == 6
    early = study.ask()  # it has asked for no parameter yet, but its proposal is known
    late = study.ask(dict(sampler.distributions))
    assert early.relative_params
    assert early.relative_params != late.params


def test_trials_that_someone_else_enqueued_are_read():
    model = ToyModel()
    sampler = AutocompSampler(model.contexts, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    first = SAMPLERS["auto"](Ask(1, SeedTree(0), model.contexts, []))
    study.enqueue_trial(dict(first.params))
    study.optimize(objective(model, sampler), n_trials=3)
    assert study.trials[0].params == first.params
    assert len({frozenset(trial.params.items()) for trial in study.trials}) == 3


def test_an_exhausted_space_and_parameters_of_others_are_drawn_at_random(caplog):
    model = ToyModel(blocks=1, bypass=False)
    (context,) = model.contexts
    least = replace(context, budget_bytes=smallest(context.problem).cost)
    sampler = AutocompSampler([least], seed=0, sampler="random")
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    only, more = (study.ask(dict(sampler.distributions)) for _ in range(2))
    assert set(only.params.values()) == {0}
    assert set(more.params.values()) != {0}
    assert "no new plan is left" in caplog.text
    assert 0.0 <= more.suggest_float("rate", 0.0, 1.0) <= 1.0


def test_unseeded_samplers_differ_and_unknown_ones_are_refused():
    model = ToyModel()
    one, two = (
        optuna.create_study(
            sampler=AutocompSampler(model.contexts, sampler="random"),
            directions=["minimize", "minimize"],
        ).ask()
        for _ in range(2)
    )
    assert one.relative_params != two.relative_params
    assert np.all([value >= 0 for value in one.relative_params.values()])
    with pytest.raises(ConfigError, match="unknown sampler 'tpee'"):
        AutocompSampler(model.contexts, sampler="tpee")
