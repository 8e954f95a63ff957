"""The study: telling, resuming, killing, and several processes on one storage."""

import json
import math
import multiprocessing
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autocomp.core.errors import ConfigError
from autocomp.search.records import FinishedRecord, Measured
from autocomp.search.study import Study
from autocomp.testing.study import (
    LIMIT_BYTES,
    check_study,
    fake_proposal,
    fake_space,
    outcome,
    run_fake,
)

SPACE = fake_space()


def opened(folder, storage=None, **changes):
    return Study.open(storage, folder, fingerprint={"seed": 0}, **changes)


def proposal(study, index=None, **changes):
    index = study.next_logical() if index is None else index
    return replace(fake_proposal(SPACE, 0, index, ()), **changes)


def small(study, **changes):
    """Return the proposal of a plan within the limit, whatever it really weighs."""
    fits = {"weight_bytes": 1000, "constraints": {"weight_bytes": -1.0}}
    return proposal(study, **(fits | changes))


def finished(number, kl, size=1000):
    return FinishedRecord(number, f"artefacts/{number}", kl, 0.01, 20.0, size, kl, 0.01)


def test_filled_study_keeps_the_contract(tmp_path, storage):
    study = opened(tmp_path, storage)
    run_fake(study, 2, 40)
    check_study(study, 40)
    states = {record.state for record in study.records()}
    assert states == {"COMPLETE", "PRUNED", "FAIL"}, "the fake has all kinds of trials"
    assert any(0 < record.tokens < 4096 for record in study.records()), "a stopped one, too"


def test_same_seed_same_study_in_any_storage(tmp_path):
    studies = [
        opened(tmp_path / "journal"),
        opened(tmp_path / "sqlite", f"sqlite:///{tmp_path / 'a.db'}"),
        opened(tmp_path / "file", str(tmp_path / "elsewhere" / "named.log")),
    ]
    for study in studies:
        run_fake(study, 3, 12)
    assert outcome(studies[0]) == outcome(studies[1]) == outcome(studies[2])


def test_extending_is_the_same_as_asking_for_more(tmp_path):
    short = opened(tmp_path / "short")
    run_fake(short, 0, 7)
    run_fake(opened(tmp_path / "short"), 0, 15)
    long = opened(tmp_path / "long")
    run_fake(long, 0, 15)
    assert outcome(short) == outcome(long)


def test_plain_optuna_opens_it(tmp_path):
    ours = opened(tmp_path)
    run_fake(ours, 0, 30)
    backend = JournalFileBackend(str(tmp_path / "journal.log"))
    theirs = optuna.load_study(study_name="autocomp", storage=JournalStorage(backend))
    front = {point.number for point in ours.front().points}
    assert {trial.number for trial in theirs.best_trials} == front
    assert len(front) > 1
    assert theirs.metric_names == ["kl_nats", "weight_bytes"]
    assert all(
        isinstance(value, int) for trial in theirs.trials for value in trial.params.values()
    )


@pytest.mark.parametrize("sampler", ["TPESampler", "NSGAIISampler"])
def test_samplers_of_optuna_go_on_from_it(tmp_path, sampler):
    study = opened(tmp_path)
    run_fake(study, 0, 20)
    study.optuna.sampler = getattr(optuna.samplers, sampler)(seed=0)
    trial = study.optuna.ask(SPACE.distributions())
    assert SPACE.decode(trial.params)
    assert len(study.records()) == 20, "a trial that is not ours is none of our records"


def test_measured(tmp_path, storage):
    study = opened(tmp_path, storage)
    new = small(study)
    number = study.add(new)
    assert study.records()[0].state == "RUNNING"
    assert study.tell_measured(number, Measured(0.5, (0.4, 0.6), 4096, 1.5))
    record = study.records()[0]
    assert (record.state, record.loss, record.unit_loss) == ("COMPLETE", 0.5, (0.4, 0.6))
    assert (record.tokens, record.seconds, record.weight_bytes) == (4096, 1.5, 1000)
    assert record.feasible
    assert record.plan == new.plan
    assert SPACE.decode(record.params) == new.plan
    assert study.optuna.trials[0].values == [0.5, 1000.0]


def test_stopped_trial_is_pruned_with_its_kl(tmp_path):
    study = opened(tmp_path)
    number = study.add(small(study))
    assert study.tell_stopped(number, Measured(2.0, (2.0,), 1024), "dominated")
    trial, record = study.optuna.trials[0], study.records()[0]
    assert trial.state == TrialState.PRUNED
    assert trial.values is None
    assert (record.loss, record.tokens, record.reason) == (2.0, 1024, "dominated")
    assert record.constraints["fidelity"] == 1
    assert record.within_limits
    assert not record.feasible


def test_infeasible_trial_is_pruned_without_a_kl(tmp_path):
    study = opened(tmp_path)
    number = study.add(small(study, constraints={"weight_bytes": 500.0}))
    assert study.tell_infeasible(number, "500 bytes too large")
    record = study.records()[0]
    assert (record.state, record.loss, record.within_limits) == ("PRUNED", None, False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_value_that_is_not_finite_fails(tmp_path, value):
    study = opened(tmp_path)
    study.tell_measured(study.add(small(study)), Measured(value))
    study.tell_stopped(study.add(small(study)), Measured(value), "gate")
    assert [record.state for record in study.records()] == ["FAIL", "FAIL"]
    assert all(f"kl_nats is {value}" in record.reason for record in study.records())
    assert study.front().points == ()


def test_infeasible_measurement_stays_off_the_front(tmp_path):
    study = opened(tmp_path)
    over = study.add(small(study, constraints={"peak_memory_bytes": 1.0}))
    study.tell_measured(over, Measured(0.001))
    good = study.add(small(study))
    study.tell_measured(good, Measured(0.5))
    assert [point.number for point in study.front().points] == [good]
    assert [trial.number for trial in study.optuna.best_trials] == [good]


def test_nothing_is_told_twice(tmp_path, storage):
    study, other = opened(tmp_path, storage), opened(tmp_path, storage)
    number = study.add(small(study))
    assert study.tell_measured(number, Measured(0.5))
    assert not other.tell_measured(number, Measured(0.7))
    assert not other.tell_failed(number, "late")
    assert not other.renew_lease(number)
    assert study.records()[0].loss == 0.5
    assert study.records()[0].reason == ""


def test_logical_index_has_one_owner(tmp_path, storage):
    study, other = opened(tmp_path, storage), opened(tmp_path, storage)
    assert study.add(small(study, index=0)) == 0
    assert other.add(replace(small(other, index=1), logical=0)) is None
    assert [record.number for record in study.records()] == [0]
    assert study.next_logical() == 1
    assert study.add(small(study, index=1)) is not None, "the loser's plan is still free"


def test_repeated_plan_is_refused_but_uses_its_index(tmp_path, storage):
    study = opened(tmp_path, storage)
    new = small(study, index=0)
    study.add(new)
    assert study.add(replace(new, logical=1)) is None
    assert [record.state for record in study.records()] == ["RUNNING", "FAIL"]
    assert "repeats the plan of trial 0" in study.records()[1].reason
    assert study.next_logical() == 2


def test_running_trial_of_a_living_process_is_no_orphan(tmp_path):
    study = opened(tmp_path)
    study.add(small(study))
    assert opened(tmp_path).orphans() == []


def test_expired_and_released_leases_are_orphans(tmp_path):
    study = opened(tmp_path, lease_seconds=-1.0)
    number = study.add(small(study))
    assert [record.number for record in study.orphans()] == [number]
    patient = opened(tmp_path)
    assert patient.renew_lease(number)
    assert study.orphans() == []
    assert patient.release(number)
    assert [record.number for record in study.orphans()] == [number]


def test_crash_while_telling_leaves_no_trace(tmp_path):
    study = opened(tmp_path, lease_seconds=-1.0)
    number = study.add(small(study))
    # All that a kill can leave: attributes and the constraint written, the state not.
    tell = study._storage.set_trial_state_values
    study._storage.set_trial_state_values = lambda *_: False
    study.tell_stopped(number, Measured(9.0, (9.0,), 1024), "gate")
    study._storage.set_trial_state_values = tell
    assert study.records()[0].loss is None
    (orphan,) = opened(tmp_path).orphans()
    study.tell_measured(orphan.number, Measured(0.5, (0.5,), 4096))
    assert study.records()[0].feasible
    assert [trial.number for trial in study.optuna.best_trials] == [number]


def test_other_settings_are_refused_with_a_diff(tmp_path, storage):
    first = {"model": "a", "data": {"window": 512, "rungs": [1, 2]}, "seed": 0}
    Study.open(storage, tmp_path, fingerprint=first)
    assert Study.open(storage, tmp_path, fingerprint=first).fingerprint == first
    second = {"model": "b", "data": {"window": 512, "rungs": [1, 4]}, "seed": 0}
    with pytest.raises(ConfigError) as error:
        Study.open(storage, tmp_path, fingerprint=second)
    text = str(error.value)
    assert "model: stored 'a', now 'b'" in text
    assert "data.rungs: stored [1, 2], now [1, 4]" in text
    assert "window" not in text


def test_finished_records(tmp_path, storage):
    study = opened(tmp_path, storage)
    for size in (-1.0, -1.0, 1.0):
        number = study.add(small(study, constraints={"weight_bytes": size}))
        study.tell_measured(number, Measured(0.5))
    assert study.best_finished() is None
    study.set_finished(finished(0, 0.3))
    study.set_finished(finished(1, 0.2))
    study.set_finished(finished(2, 0.1))
    assert study.best_finished() == finished(1, 0.2), "the best is one within the limits"
    again = Study.open_existing(storage or tmp_path)
    assert [record.finished for record in again.records()] == [
        finished(0, 0.3),
        finished(1, 0.2),
        finished(2, 0.1),
    ]


def test_finished_records_of_another_metric_bear_its_name(tmp_path):
    study = opened(tmp_path, metric="task_error")
    assert study.metric == opened(tmp_path).metric == "task_error"
    study.tell_measured(study.add(small(study)), Measured(0.25, (0.0, 0.0, 0.0, 1.0)))
    low_kl = replace(
        finished(0, 0.1), metric="task_error", heldout_loss=0.4, unit_loss=(0.0, 1.0), recovery="x"
    )
    low_error = replace(low_kl, heldout_kl_nats=0.9, heldout_loss=0.3, recovery="")
    for record in (low_kl, low_error):
        study.set_finished(record)
    assert study.best_finished() == low_error, "the metric decides"
    stored = study.optuna.user_attrs["finished:0"]
    assert (stored["heldout_task_error"], stored["heldout_kl_nats"]) == (0.3, 0.9)
    assert "heldout_loss" not in stored
    assert study.optuna.trials[0].user_attrs["task_error"] == 0.25


def test_open_existing_creates_nothing(tmp_path):
    for source in (tmp_path, tmp_path / "none.log", f"sqlite:///{tmp_path / 'none.db'}"):
        with pytest.raises(ConfigError, match="no study"):
            Study.open_existing(source)
    assert list(tmp_path.iterdir()) == []


def test_open_existing_finds_the_study_directory(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    opened(tmp_path / "runs", url)
    assert Study.open_existing(url).study_dir == tmp_path / "runs"
    opened(tmp_path / "local")
    os.rename(tmp_path / "local", tmp_path / "moved")
    assert Study.open_existing(tmp_path / "moved").study_dir == tmp_path / "moved"


def test_open_existing_names_what_is_there(tmp_path):
    opened(tmp_path, name="mine")
    with pytest.raises(ConfigError, match="no study named 'autocomp'; it holds: mine"):
        Study.open_existing(tmp_path)


def fill(folder, trials, storage):
    run_fake(opened(folder, storage), 0, trials, pause=0.02)


def start(folder, trials, storage=None):
    """Run a search in a process of its own."""
    process = multiprocessing.get_context("fork").Process(
        target=fill, args=(folder, trials, storage)
    )
    process.start()
    return process


def wait_for_trials(folder: Path, process, lines: int):
    """Wait until the journal has so many lines, or the process has ended."""
    journal = folder / "journal.log"
    while process.is_alive():
        if journal.is_file() and journal.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)


def test_killed_at_any_moment_and_restarted_gives_the_same_study(tmp_path):
    straight = opened(tmp_path / "straight")
    run_fake(straight, 0, 25)
    killed = tmp_path / "killed"
    moments = random.Random(0)
    lines = 0
    for _ in range(5):
        process = start(killed, 25)
        lines += moments.randrange(5, 30)
        wait_for_trials(killed, process, lines)
        time.sleep(moments.random() * 0.03)
        process.kill()
        process.join()
    resumed = opened(killed)
    assert len(resumed.records()) < 25, "the kills came before the end"
    run_fake(resumed, 0, 25)
    check_study(resumed, 25)
    assert outcome(resumed) == outcome(straight)


def test_two_processes_lose_no_plan(tmp_path, storage):
    processes = [start(tmp_path, 24, storage) for _ in range(2)]
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    check_study(Study.open_existing(storage or tmp_path), 24)


def test_proposals_hold_the_limit_that_the_contract_checks(tmp_path):
    study = opened(tmp_path)
    run_fake(study, 0, 30)
    sizes = [record.weight_bytes for record in study.records()]
    assert min(sizes) < LIMIT_BYTES < max(sizes)


def test_attributes_are_plain_json(tmp_path):
    study = opened(tmp_path)
    run_fake(study, 0, 5)
    study.set_finished(finished(0, 0.3))
    text = (tmp_path / "journal.log").read_text(encoding="utf-8")
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
