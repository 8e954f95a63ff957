"""Drivers that are killed, and servers that are killed under them, on every kind of storage."""

import multiprocessing
import time
from functools import partial

import pytest

from autocomp.core.errors import StoreError
from autocomp.search import patience
from autocomp.search.study import Study
from autocomp.testing.study import check_study, outcome, run_fake

TRIALS = 16


def opened(folder, storage=None):
    return Study.open(storage, folder, fingerprint={"seed": 0})


def fill(folder, storage, pause):
    run_fake(opened(folder, storage), 0, TRIALS, pause)


@pytest.fixture
def start(tmp_path):
    """Starts searches in processes of their own, which end with the test."""
    processes = []

    def begin(storage, pause=0.1):
        context = multiprocessing.get_context("fork")
        processes.append(context.Process(target=fill, args=(tmp_path, storage, pause)))
        processes[-1].start()
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()


def wait_until(condition, process):
    """Wait for something that a process does."""
    while process.is_alive():
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("the process ended too early")


def running(study, owner):
    """Return the trials that a process is measuring."""
    trials = study.optuna.get_trials(deepcopy=False)
    mine = [trial for trial in trials if f":{owner.pid}:" in trial.user_attrs["lease"]["owner"]]
    return [trial.number for trial in mine if not trial.state.is_finished()]


def plans_and_values(study):
    """Return what an interruption must not change; a trial stored twice uses up a number."""
    return [(logical, *rest) for logical, _, *rest in outcome(study)]


@pytest.fixture
def straight(tmp_path):
    """What an uninterrupted search finds."""
    study = opened(tmp_path / "straight")
    run_fake(study, 0, TRIALS)
    return plans_and_values(study)


def test_a_killed_search_resumes_where_it_was(tmp_path, storage, start, straight):
    study = opened(tmp_path, storage)
    process = start(storage)
    wait_until(lambda: study.next_logical() > 4 and running(study, process), process)
    process.kill()
    process.join()
    (cut,) = [record for record in study.records() if record.state == "RUNNING"]
    run_fake(study, 0, TRIALS)
    check_study(study, TRIALS)
    assert plans_and_values(study) == straight
    assert next(r for r in study.records() if r.number == cut.number).digest == cut.digest


def test_what_a_killed_search_leaves_another_one_takes_over(tmp_path, storage, start):
    study = opened(tmp_path, storage)
    killed, living = start(storage), start(storage)
    wait_until(lambda: study.next_logical() > 4 and running(study, killed), living)
    killed.kill()
    killed.join()
    living.join(timeout=120)
    assert living.exitcode == 0
    check_study(study, TRIALS)


@pytest.mark.parametrize("kind", ["postgres", "redis_server"])
def test_a_server_that_is_killed_and_restarted_is_waited_for(
    tmp_path, request, kind, start, straight
):
    server = request.getfixturevalue(kind)
    storage = server.new()
    study = opened(tmp_path, storage)
    process = start(storage)
    wait_until(lambda: study.next_logical() > 4, process)
    server.kill()
    time.sleep(0.5)  # several trials' time
    assert process.is_alive()
    server.start()
    process.join(timeout=120)
    assert process.exitcode == 0
    check_study(study, TRIALS)
    assert plans_and_values(study) == straight


@pytest.mark.parametrize("kind", ["postgres", "redis_server"])
def test_a_search_whose_server_stays_away_stops_and_resumes(
    tmp_path, request, kind, straight, monkeypatch
):
    server = request.getfixturevalue(kind)
    monkeypatch.setattr(patience.PatientStorage.__init__, "__defaults__", (0.5,))
    study = opened(tmp_path, server.new())
    run_fake(study, 0, 5)
    told = partial(study.records)
    before = len(told())
    server.kill()
    try:
        with pytest.raises(StoreError, match=r"127\.0\.0\.1.* has not answered for 0 s"):
            run_fake(study, 0, TRIALS)
    finally:
        server.start()
    assert len(told()) == before
    run_fake(study, 0, TRIALS)
    check_study(study, TRIALS)
    assert plans_and_values(study) == straight


def test_records_that_redis_forgot_are_missed(tmp_path, redis_server):
    study = opened(tmp_path, redis_server.new())
    run_fake(study, 0, 3)
    redis_server.client.flushall()
    with pytest.raises(StoreError, match=r"Redis has lost \d+ records .*--appendonly yes"):
        study.records()


def test_redis_without_a_log_is_warned_of(tmp_path, redis_server, caplog):
    redis_server.client.config_set("appendonly", "no")
    try:
        opened(tmp_path, redis_server.new())
    finally:
        redis_server.client.config_set("appendonly", "yes")
    assert "keeps no log on its disk" in caplog.text
