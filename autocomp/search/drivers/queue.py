"""The trials that a driver is to measure: abandoned ones first, then new proposals."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from autocomp.core.errors import WorkerError
from autocomp.core.metric import short_name
from autocomp.core.progress import Progress
from autocomp.core.units import format_bytes
from autocomp.search.clock import Clock
from autocomp.search.drivers.job import Evaluate, Job, Report
from autocomp.search.gate import Gate
from autocomp.search.records import FIDELITY, NewTrial, TrialRecord
from autocomp.search.study import Study

CRASHES_IN_A_ROW = 3
RENEWALS_A_LEASE = 4


class Source(Protocol):
    """What a search decides about its trials."""

    def propose(self, index: int, told: Sequence[TrialRecord]) -> NewTrial | None:
        """Return the proposal of a logical trial; ``None`` when no new plan is left to try."""

    def gate(self, trial: TrialRecord, before: Sequence[TrialRecord]) -> Gate | None:
        """Return what a trial has to keep up with, from the trials proposed before it."""

    def out_of_time(self) -> bool:
        """Return whether nothing more shall be proposed."""


class TrialQueue:
    """Hands out the trials of a study and tells what came of them.

    It is used by one thread. Several processes may hand out trials of one study, each with a queue
    of its own: what one of them leaves behind when it dies, another takes over.

    Args:
        study: The study.
        source: What is proposed.
        total: Logical trials that the study shall hold.
        progress: Listener.
        clock: Gets the stages of the evaluations, and ``record`` for the study's own time.
    """

    def __init__(
        self, study: Study, source: Source, total: int, progress: Progress, clock: Clock
    ) -> None:
        self.study = study
        self.progress = progress
        self.running: dict[int, Job] = {}
        self._source = source
        self._total = total
        self._clock = clock
        self._dry = False
        self._crashes = 0
        self._renewed = time.monotonic()
        told = sum(record.state != "RUNNING" for record in study.records())
        progress.start("trials", total, "trial")
        progress.advance(min(total, told))

    def next(self) -> Job | None:
        """Return another job; ``None`` when there is none, unless a running one brings news."""
        while not self._dry:
            record = self._abandoned() or self._proposed()
            if record is None:
                self._dry = True
            elif (job := self._begin(record)) is not None:
                return job
        return None

    def _abandoned(self) -> TrialRecord | None:
        """Take over a trial of a process that died."""
        with self._clock.time("record"):
            for record in self.study.orphans():
                if record.number not in self.running and self.study.renew_lease(record.number):
                    return record
        return None

    def _proposed(self) -> TrialRecord | None:
        """Store a new proposal."""
        while (index := self.study.next_logical()) < self._total:
            if self._source.out_of_time():
                if not self.running:
                    self.progress.log("the time limit is reached; stopping")
                break
            with self._clock.time("record"):
                told = self.study.records()
            new = self._source.propose(index, told)
            if new is None:
                if not self.running:
                    self.progress.log("no new plan is left near the best ones; stopping")
                break
            with self._clock.time("record"):
                number = self.study.add(new)
                if number is not None:
                    return next(r for r in self.study.records() if r.number == number)
        return None

    def _begin(self, record: TrialRecord) -> Job | None:
        """Return the job of a running trial; ``None`` when it breaks a limit, which is told."""
        limits = {name: by for name, by in record.constraints.items() if name != FIDELITY}
        broken = [f"{name} by {over:.9g}" for name, over in limits.items() if over > 0]
        if broken:
            self.study.tell_infeasible(record.number, f"over the limit: {', '.join(broken)}")
            self.progress.advance(note=f"#{record.number} infeasible")
            return None
        before = [other for other in self.study.records() if other.logical < record.logical]
        job = Job(
            number=record.number,
            logical=record.logical,
            plan_json=record.plan_json,
            origin=record.origin,
            family=record.family,
            weight_bytes=record.weight_bytes,
            gate=self._source.gate(record, before),
        )
        self.running[job.number] = job
        return job

    def tell(self, job: Job, report: Report) -> None:
        """Store what came of a job.

        Raises:
            WorkerError: When evaluation after evaluation crashed.
        """
        self.running.pop(job.number)
        self._dry = False
        for name, seconds in report.stages.items():
            self._clock.add(name, seconds)
        with self._clock.time("record"):
            note = self._store(job, report)
        self.progress.advance(note=f"#{job.number} {note}")
        self._crashes = self._crashes + 1 if report.crashed else 0
        if self._crashes == CRASHES_IN_A_ROW:
            self.release()
            raise WorkerError(
                f"the last {self._crashes} evaluations crashed, trial {job.number} with: "
                f"{report.reason}. What was measured is kept. Where memory is short, use fewer "
                "--workers; to see the whole traceback, use --driver inline."
            )

    def _store(self, job: Job, report: Report) -> str:
        """Write a report to the study and return what to say about it."""
        found = report.measured
        if found is None:
            self.study.tell_failed(job.number, report.reason)
            return f"failed: {report.reason}"
        line = (
            f"{job.origin} {job.family} {format_bytes(job.weight_bytes)} "
            f"{short_name(self.study.metric)} {found.loss:.4f}"
        )
        if report.complete:
            self.study.tell_measured(job.number, found)
            return line
        reason = f"worse than a plan no larger after {found.tokens} tokens"
        self.study.tell_stopped(job.number, found, reason)
        return f"{line} (stopped at {found.tokens} tokens)"

    def keep_alive(self) -> None:
        """Prolong the leases of running jobs when that is due."""
        now = time.monotonic()
        if now - self._renewed > self.study.lease_seconds / RENEWALS_A_LEASE:
            self._renewed = now
            for number in self.running:
                self.study.renew_lease(number)

    def release(self) -> None:
        """Give up the running jobs, so that anyone may take them over at once."""
        for number in self.running:
            self.study.release(number)
        self.running.clear()


class Driver(Protocol):
    """Measures trials until none is left; made from the section ``search`` of the settings."""

    def run(self, trials: TrialQueue, here: Evaluate, elsewhere: Callable[[], Evaluate]) -> None:
        """Measure all trials.

        Args:
            trials: What to measure, and where results go.
            here: Measures in this process, with what it has loaded.
            elsewhere: Makes what measures in another process; it is sent there.

        Raises:
            KeyboardInterrupt: When interrupted; what was measured is told, the rest given up.
        """
