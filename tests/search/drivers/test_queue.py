"""The queue of trials: what is handed out, what is told, what is given up."""

from functools import partial

import pytest

from autocomp.config import SearchConfig
from autocomp.core.errors import WorkerError
from autocomp.core.progress import Silent
from autocomp.search.clock import Clock
from autocomp.search.drivers.inline import InlineDriver
from autocomp.search.drivers.job import Report
from autocomp.search.drivers.queue import TrialQueue
from autocomp.search.gate import Gate
from autocomp.search.records import Measured
from autocomp.search.study import Study
from autocomp.testing.study import FakeEvaluator, FakeSource, fake_measure, fake_space, run_fake

SPACE = fake_space()


def opened(folder, **changes):
    return Study.open(None, folder, fingerprint={"seed": 0}, **changes)


def queue_of(study, total=12, source=None):
    return TrialQueue(study, source or FakeSource(SPACE, 0), total, Silent(), Clock())


def report(job):
    return Report(*fake_measure(SPACE.sketch, job.plan))


class Log(Silent):
    def __init__(self):
        self.done, self.lines, self.said = 0, [], []

    def advance(self, amount=1, note=""):
        self.done += amount
        self.lines += [note] if note else []

    def log(self, text):
        self.said.append(text)


def test_several_jobs_run_at_a_time_and_no_plan_is_handed_out_twice(tmp_path):
    study = opened(tmp_path)
    queue = queue_of(study)
    jobs = []
    while (job := queue.next()) is not None:
        jobs.append(job)
    assert len(queue.running) == len(jobs) > 2
    assert len({job.plan_json for job in jobs}) == len(jobs)
    for job in reversed(jobs):
        queue.tell(job, report(job))
    assert queue.next() is None
    assert not queue.running
    assert "RUNNING" not in {record.state for record in study.records()}


def test_progress_counts_every_trial_once(tmp_path):
    study, log = opened(tmp_path, lease_seconds=-1.0), Log()
    queue_of(study).next()
    run_fake(study, 0, 12, progress=log)
    assert log.done == 12
    assert len({line.split()[0] for line in log.lines}) == len(log.lines)


def test_it_waits_for_news_when_the_source_has_nothing(tmp_path):
    class Reluctant(FakeSource):
        """Proposes nothing while the trial before is running."""

        asked = 0

        def propose(self, index, told):
            self.asked += 1
            if any(record.state == "RUNNING" for record in told):
                return None
            return super().propose(index, told)

    source = Reluctant(SPACE, 0)
    queue = queue_of(opened(tmp_path), source=source)
    job = queue.next()
    assert queue.next() is None
    asked = source.asked
    assert queue.next() is None
    assert source.asked == asked, "it is not asked again before something is told"
    queue.tell(job, report(job))
    assert queue.next() is not None


def test_it_stops_proposing_when_the_time_is_over_and_says_so_once(tmp_path):
    class Late(FakeSource):
        late = False

        def out_of_time(self):
            return self.late

    source, log = Late(SPACE, 0), Log()
    queue = TrialQueue(opened(tmp_path), source, 60, log, Clock())
    jobs = [queue.next(), queue.next()]
    source.late = True
    for job in jobs:
        assert queue.next() is None
        queue.tell(job, report(job))
    assert queue.next() is None
    assert log.said == ["the time limit is reached; stopping"]


def test_the_gate_knows_the_trials_before_and_is_handed_out_with_the_job(tmp_path):
    class Gated(FakeSource):
        def gate(self, trial, before):
            assert [record.logical for record in before] == list(range(trial.logical))
            return Gate.of(before, trial.weight_bytes, 2)

    queue = queue_of(opened(tmp_path), source=Gated(SPACE, 0))
    gates = []
    while (job := queue.next()) is not None:
        gates.append(job.gate)
        queue.tell(job, report(job))
    assert gates[0] is None
    assert any(isinstance(gate, Gate) for gate in gates)


def test_what_is_released_is_handed_out_again(tmp_path):
    study = opened(tmp_path)
    queue = queue_of(study)
    jobs = [queue.next(), queue.next()]
    queue.release()
    other = queue_of(study)
    assert [other.next().number for _ in jobs] == [job.number for job in jobs]


def test_leases_are_prolonged_when_that_is_due(tmp_path):
    study = opened(tmp_path, lease_seconds=0.0)
    queue = queue_of(study)
    job = queue.next()
    before = study.optuna.trials[job.number].user_attrs["lease"]["expiry"]
    queue.keep_alive()
    assert study.optuna.trials[job.number].user_attrs["lease"]["expiry"] > before
    study.lease_seconds = 600.0
    renewed = study.optuna.trials[job.number].user_attrs["lease"]["expiry"]
    queue.keep_alive()
    assert study.optuna.trials[job.number].user_attrs["lease"]["expiry"] == renewed


def test_own_trials_are_never_taken_over_even_when_their_lease_has_run_out(tmp_path):
    queue = queue_of(opened(tmp_path, lease_seconds=-1.0))
    jobs = [queue.next() for _ in range(3)]
    assert len({job.number for job in jobs}) == 3


def test_a_trial_that_was_half_told_is_measured_and_not_refused(tmp_path):
    study = opened(tmp_path, lease_seconds=-1.0)
    job = queue_of(study).next()
    trial_id = study.optuna.trials[job.number]._trial_id
    study._storage.set_trial_system_attr(trial_id, "constraints:fidelity", 1.0)
    assert queue_of(study).next().number == job.number


def test_crashes_in_a_row_stop_the_search_and_others_do_not(tmp_path):
    study = opened(tmp_path)
    queue = queue_of(study, total=60)
    crash = Report(None, reason="MemoryError: no", crashed=True)
    for answer in (crash, crash, Report(Measured(0.5), True), Report(None, reason="NaN"), crash):
        queue.tell(queue.next(), answer)
    queue.tell(queue.next(), crash)
    last, running = queue.next(), queue.next()
    with pytest.raises(WorkerError, match=rf"3 evaluations crashed, trial {last.number}.*no"):
        queue.tell(last, crash)
    failed = [record for record in study.records() if record.reason == "MemoryError: no"]
    assert len(failed) == 5
    assert [record.number for record in study.orphans()] == [running.number]


def test_an_interrupted_inline_search_gives_its_trial_up(tmp_path):
    study = opened(tmp_path)

    def interrupted(job, alive):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InlineDriver(SearchConfig()).run(queue_of(study), interrupted, partial(FakeEvaluator))
    (orphan,) = study.orphans()
    run_fake(study, 0, 12)
    assert study.records()[orphan.logical].digest == orphan.digest
