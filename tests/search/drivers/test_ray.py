"""Ray: two workers at a time, killed workers, killed drivers, Ctrl-C, and values as inline."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autocomp.config import SearchConfig, load_config
from autocomp.core.errors import ConfigError, WorkerError
from autocomp.core.progress import Silent
from autocomp.env import prepare_ray
from autocomp.search.clock import Clock
from autocomp.search.drivers.job import Job
from autocomp.search.drivers.queue import TrialQueue
from autocomp.search.drivers.ray import RayTuneDriver
from autocomp.search.drivers.worker import ModelEvaluator
from autocomp.search.run import Search
from autocomp.search.study import Study
from autocomp.testing.study import FakeSource, check_study, fake_space, run_fake

TRIALS = 14
TWO = SearchConfig(workers=2, resources={"cpus": 1})

SCRIPT = """
import sys
from pathlib import Path
from autocomp.config import SearchConfig
from autocomp.core.progress import Silent
from autocomp.search.study import Study
from autocomp.testing.study import run_fake

class Lines(Silent):
    def advance(self, amount=1, note=""):
        print(note, flush=True)
    def log(self, text):
        print(text, flush=True)

study = Study.open(None, Path(sys.argv[1]), fingerprint={"seed": 0})
config = SearchConfig(workers=2, resources={"cpus": 1})
try:
    run_fake(study, 0, int(sys.argv[2]), 0.5, config, Lines())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a cluster that this process has joined, as on a user's machines."""
    prepare_ray()
    import ray

    limits = {"num_cpus": 4, "object_store_memory": 10**8, "include_dashboard": False}
    joined = ray.init(address="local", log_to_driver=False, **limits)
    yield joined.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def start(tmp_path):
    """Starts a search with two workers in a process of its own, which ends with the test."""
    found = []

    def begin(environment):
        command = [sys.executable, "-P", "-c", SCRIPT, str(tmp_path), str(TRIALS)]
        given = {**os.environ, **environment}
        found.append(subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True))
        return found[-1]

    yield begin
    for process in found:
        process.kill()


def opened(folder):
    return Study.open(None, folder, fingerprint={"seed": 0})


def measuring():
    """Return the process ids of workers that are measuring."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::Worker.train"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def read_until(process, text):
    """Read what a search says up to a line with some text."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"the search ended without saying {text!r}")


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_two_workers_measure_two_trials_at_a_time(cluster, tmp_path):
    study = opened(tmp_path)
    run_fake(study, 0, TRIALS, 0.2, TWO)
    check_study(study, TRIALS)
    trials = [trial for trial in study.optuna.trials if "tokens" in trial.user_attrs]
    ends = [trial.datetime_complete for trial in trials]
    overlaps = sum(trials[i + 1].datetime_start < ends[i] for i in range(len(trials) - 1))
    assert overlaps > len(trials) // 2


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_driver_lose_nothing(cluster, tmp_path, start):
    process = start({"RAY_ADDRESS": cluster, "TMPDIR": str(tmp_path)})
    read_until(process, "KL")
    victim = wait_for(measuring)[0]
    os.kill(victim, signal.SIGKILL)
    lost = read_until(process, "its worker died; another one measures it again")
    again = read_until(process, f"{lost.split(':')[0]} ")
    assert "KL" in again or "failed" in again
    study = opened(tmp_path)
    wait_for(lambda: any(record.state == "RUNNING" for record in study.records()))
    process.kill()
    process.wait()
    assert len(study.orphans()) >= 1
    run_fake(study, 0, TRIALS)
    check_study(study, TRIALS)
    assert len(study.optuna.trials) == TRIALS
    wait_for(lambda: not measuring())


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_nothing_running(tmp_path, start):
    process = start({"RAY_ADDRESS": ""})
    read_until(process, "KL")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    study = opened(tmp_path)
    assert any(record.state == "COMPLETE" for record in study.records())
    running = [record.number for record in study.records() if record.state == "RUNNING"]
    assert [orphan.number for orphan in study.orphans()] == running
    wait_for(lambda: not measuring())
    run_fake(study, 0, TRIALS)
    check_study(study, TRIALS)


def driven(study, elsewhere):
    """Search with workers of a certain make."""
    queue = TrialQueue(study, FakeSource(fake_space(), 0), TRIALS, Silent(), Clock())
    RayTuneDriver(TWO).run(queue, lambda job, alive: None, elsewhere)


@pytest.mark.slow
def test_evaluations_that_crash_fail_their_trials_and_then_the_search(cluster, tmp_path):
    def elsewhere():
        def crash(job, alive):
            raise MemoryError(f"no room for trial {job.number}")

        return crash

    study = opened(tmp_path)
    with pytest.raises(WorkerError, match=r"3 evaluations crashed.*MemoryError: no room"):
        driven(study, elsewhere)
    failed = [record for record in study.records() if record.state == "FAIL"]
    assert [record.reason for record in failed] == [
        f"MemoryError: no room for trial {record.number}" for record in failed
    ]
    assert len(failed) == 3


@pytest.mark.slow
def test_workers_that_cannot_start_stop_the_search_and_spoil_no_trial(cluster, tmp_path):
    def elsewhere():
        raise ConfigError("the model has changed.")

    study = opened(tmp_path)
    with pytest.raises(ConfigError, match=r"the model has changed"):
        driven(study, elsewhere)
    assert {record.state for record in study.records()} <= {"RUNNING", "PRUNED"}
    assert study.orphans()


def test_without_ray_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'autocomp\[ray\]'"):
        RayTuneDriver(TWO)


@pytest.mark.slow
def test_values_equal_those_measured_inline(cluster, trained_llama_path, tmp_path):
    settings = {
        "model": str(trained_llama_path),
        "data.window": 64,
        "data.calibration_tokens": 1024,
        "data.rungs": (128, 1024),
        "budget.max_bytes": 45_000,
        "search.trials": 8,
        "search.workers": 2,
        "search.resources.cpus": 1,
    }
    search = Search(load_config(None, settings), tmp_path, None, Silent())
    search.run_trials(search.contexts())
    records = search.study.records()
    assert len(records) == 8
    measured = [record for record in records if record.loss is not None]
    assert len(measured) > 5
    here = ModelEvaluator(search.variants)
    for record in measured:
        job = Job(record.number, 0, record.plan_json, record.origin, record.family, 0)
        inline = here(job, lambda: None).measured.unit_loss[: len(record.unit_loss)]
        assert record.unit_loss == pytest.approx(inline, abs=1e-4)
