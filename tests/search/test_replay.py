"""A recorded search as an evaluator: what was measured comes back, what was not is like it."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from autocomp.config import load_config
from autocomp.core.errors import ConfigError
from autocomp.core.progress import Silent
from autocomp.core.registry import SAMPLERS
from autocomp.search.knapsack import solve
from autocomp.search.replay import Replay, ReplayOracle, replay_search
from autocomp.search.run import run_search
from autocomp.search.study import Study
from autocomp.testing.samplers import UNITS, ToyModel, run_sampler

LADDER = (2, 8, UNITS)


@pytest.fixture(scope="module")
def model() -> ToyModel:
    return ToyModel(blocks=4, variant=True)


@pytest.fixture(scope="module")
def recorded(model):
    """Forty trials of the default sampler, every fifth of them stopped half-way."""
    states = ("COMPLETE",) * 4 + ("PRUNED",)
    return run_sampler(SAMPLERS["auto"], model, 40, states=states)


@pytest.fixture(scope="module")
def replay(model, recorded) -> Replay:
    return Replay(model.contexts, recorded, LADDER)


def test_recorded_plans_return_what_was_recorded(replay, recorded):
    for record in recorded:
        read = len(record.unit_loss)
        assert replay.losses(record.plan, read) == record.unit_loss
        assert replay.losses(record.plan, 2) == record.unit_loss[:2]
        assert len(replay.losses(record.plan)) == UNITS
    assert replay.tokens_a_unit == 512
    assert replay.measured == 32


def test_a_stopped_plan_goes_on_at_its_level(model, replay, recorded):
    """Half of the units tell the mean of all: the rest deviates by about 3 % a unit."""
    stopped = [record for record in recorded if record.state == "PRUNED"]
    assert len(stopped) == 8
    for record in stopped:
        found = np.mean(replay.losses(record.plan))
        assert found == pytest.approx(model.loss(record.plan), rel=0.1)


def test_plans_that_were_not_measured_are_predicted_as_well_as_promised(model, replay):
    """Log errors on other searches' plans within 1.5 leave-one-out errors, near the best less.

    The true losses follow the scores up to drawn factors, and bend upwards, which none of the
    stand-ins knows.
    """
    other = run_sampler(SAMPLERS["auto"], model, 50, seed=3)[15:]
    predicted = np.log([np.mean(replay.losses(record.plan)) for record in other])
    errors = predicted - np.log([record.loss for record in other])
    assert 0.02 < replay.leave_one_out < 0.5
    assert np.sqrt(np.mean(errors**2)) < 1.5 * replay.leave_one_out
    assert np.corrcoef(predicted, predicted - errors)[0, 1] > 0.95


def test_neighbours_lose_about_the_same_and_far_plans_differ_between_seeds(model, recorded):
    """One group of 29 changed correlates by (28/29)² = 0.93; a seed draws far plans anew."""
    context = model.contexts[0]
    best = solve(context.problem, context.budget_bytes)
    jumps, spread = [], []
    for seed in range(12):
        drawn = Replay(model.contexts, recorded, LADDER, seed)
        stand_in = drawn._stand_ins[0]
        choice = best.choice.copy()
        choice[3] = (choice[3] + 1) % 4
        near = context.problem.solution(choice, best.bypassed)
        far = solve(context.problem, int(0.6 * context.budget_bytes))
        logs = [np.log(stand_in.level(s)) - stand_in._log_predicted(s) for s in (best, near, far)]
        jumps.append(logs[0] - logs[1])
        spread.append(logs[2])
    assert np.std(spread) > 3 * np.std(jumps)


def test_the_field_goes_through_the_records(model, recorded, replay):
    """Without the records themselves, stand-ins of their plans hit them to a few percent."""
    full = [record for record in recorded if record.state == "COMPLETE"]
    errors = []
    for record in full:
        stand_in, params = replay._owner(record.plan)
        errors.append(np.log(stand_in.level(stand_in.solution(params)) / record.loss))
    assert np.sqrt(np.mean(np.square(errors))) < 0.25 * replay.leave_one_out


def test_replays_are_the_same_in_every_process(model, recorded, replay):
    code = (
        "import json\n"
        "from autocomp.core.registry import SAMPLERS\n"
        "from autocomp.search.replay import Replay, replay_search\n"
        "from autocomp.testing.samplers import ToyModel, run_sampler\n"
        "model = ToyModel(blocks=4, variant=True)\n"
        "states = ('COMPLETE',) * 4 + ('PRUNED',)\n"
        "told = run_sampler(SAMPLERS['auto'], model, 40, states=states)\n"
        "replay = Replay(model.contexts, told, (2, 8, 16))\n"
        "trace = replay_search(replay, 'random', 5, trials=8)\n"
        "print(json.dumps([(r.digest, r.loss) for r in trace.records]))\n"
    )
    here = [(r.digest, r.loss) for r in replay_search(replay, "random", 5, trials=8).records]
    answer = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    there = [tuple(pair) for pair in json.loads(answer.stdout)]
    assert [digest for digest, _ in there] == [digest for digest, _ in here]
    assert [loss for _, loss in there] == pytest.approx([loss for _, loss in here], rel=1e-9)


NO_GRADIENT = ("knapsack", "step", "mutation", "crossover")


def test_a_replayed_search_is_a_search(model, replay):
    """Rungs, gate and budget as in the real one, and tokens as units were read."""
    trace = replay_search(replay, "auto", 1, trials=40)
    assert len(trace.records) == 40
    states = {record.state for record in trace.records}
    assert states == {"COMPLETE", "PRUNED"}
    for record in trace.records:
        assert record.within_limits
        assert len(record.unit_loss) in LADDER
        assert (record.state == "COMPLETE") == (len(record.unit_loss) == UNITS)
        assert record.tokens == 512 * len(record.unit_loss)
    assert np.diff(trace.tokens, prepend=0).tolist() == [r.tokens for r in trace.records]
    best = trace.best()
    assert list(best) == sorted(best, reverse=True)
    feasible = [record.loss for record in trace.records if record.feasible]
    assert best[-1] == min(feasible)
    again = replay_search(replay, "auto", 1, trials=25)
    assert again.records == trace.records[:25], "a shorter search is the beginning of a longer one"


def test_a_token_budget_ends_a_search(replay):
    trace = replay_search(replay, "random", 0, trials=100, tokens=30_000)
    assert trace.tokens[-1] >= 30_000 > trace.tokens[-2]


def test_the_default_beats_random_over_seeds(replay):
    ratios = [
        replay_search(replay, "auto", seed, trials=24).best()[-1]
        / replay_search(replay, "random", seed, trials=24).best()[-1]
        for seed in range(4)
    ]
    assert np.exp(np.mean(np.log(ratios))) < 0.5


def test_the_oracle_reads_text_of_its_own_and_counts_it_once(replay, recorded):
    oracle = ReplayOracle(replay)
    plan = recorded[0].plan
    every = oracle.losses(plan, range(oracle.pool))
    assert oracle.losses(plan, [3, 1]) == (every[3], every[1])
    assert oracle.tokens == 512 * oracle.pool
    assert np.mean(every) == pytest.approx(recorded[0].loss, rel=0.05)
    assert every != recorded[0].unit_loss
    assert oracle.parts == 0


def test_too_few_measured_trials_and_foreign_plans_are_refused(model, replay, recorded):
    with pytest.raises(ConfigError, match=r"needs 3 trials .* holds 2"):
        Replay(model.contexts, recorded[:2], LADDER)
    with pytest.raises(ConfigError, match="of a space that the study searched"):
        replay.losses(replace(recorded[0].plan, variant="other"))


@pytest.fixture(scope="module")
def study_dir(trained_llama_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    settings = {
        "model": str(trained_llama_path),
        "data.window": 64,
        "data.calibration_tokens": 512,
        "data.rungs": (128, 256, 512),
        "data.heldout_tokens": 128,
        "space.linear": ("rtn-w3g64", "rtn-w4g64", "rtn-w8g64"),
        "space.embedding": ("rtn-w4g64", "rtn-w8g64"),
        "space.bypass": False,
        "budget.max_bytes": 60_000,
        "search.trials": 10,
        "search.finalists": 1,
        "search.finish": "none",
        "search.moves": NO_GRADIENT,
    }
    config = load_config(None, settings)
    run_search(config, study_dir=folder, storage=None, progress=Silent())
    return folder


def test_a_study_on_disk_is_replayed_without_its_model(study_dir):
    replay = Replay.of(study_dir)
    assert replay.ladder == (2, 4, 8)
    assert replay.tokens_a_unit == pytest.approx(64)
    records = Study.open_existing(study_dir).records()
    measured = [record for record in records if record.loss is not None]
    for record in measured:
        assert replay.losses(record.plan, len(record.unit_loss)) == record.unit_loss
    trace = replay_search(replay, "auto", 0, trials=len(records), moves=NO_GRADIENT)
    assert [r.digest for r in trace.records] == [r.digest for r in records], "the same search"
