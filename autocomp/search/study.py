"""The study: an Optuna study that holds every proposal, its plan and what was measured.

One file of ours decides how trials are told, so that ``study.best_trials`` of plain Optuna is our
front:

* measured to the top rung: ``COMPLETE`` with (loss, cost) and the constraint ``fidelity`` at 0;
  the loss is the metric of the study's objective, such as KL in nats, the cost that of a plan,
  such as bytes;
* infeasible, or stopped at a rung: ``PRUNED`` without values, ``fidelity`` at 1, the loss as
  attribute;
* not finite, or crashed: ``FAIL`` with the reason.

A trial is created in one write, ``RUNNING``, with a lease. Several processes may write to one
storage: the lowest trial number owns a logical index, and the first trial of a plan owns the
plan; the others are told ``FAIL`` before they are evaluated. Where a server stored a trial but its
answer was lost, the storage writes it again: copies are told ``FAIL``, and the first one goes on.

Reference: Akiba et al. 2019, Optuna, https://arxiv.org/abs/1907.10902
"""

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from autocomp.core.cost import WEIGHT_BYTES
from autocomp.core.errors import ConfigError
from autocomp.core.metric import KL
from autocomp.search.facts import StudyFacts
from autocomp.search.front import Front, FrontPoint
from autocomp.search.lease import Lease
from autocomp.search.records import (
    FIDELITY,
    FinishedRecord,
    Measured,
    NewTrial,
    TrialRecord,
    quality,
    to_record,
)
from autocomp.search.storage import existing_storage, open_storage, without_password

DEFAULT_NAME = "autocomp"
LEASE_SECONDS = 600.0

logger = logging.getLogger(__name__)


class Study(StudyFacts):
    """An Optuna study of ours. Use :meth:`open` to search and :meth:`open_existing` to read.

    Args:
        study: The Optuna study.
        study_dir: Where artefacts lie.
        lease_seconds: How long a process may stay silent before its trial is taken over.
    """

    def __init__(
        self, study: optuna.Study, study_dir: Path, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        super().__init__(study, study_dir)
        self.lease_seconds = lease_seconds
        self._storage = study._storage
        self._id = study._study_id

    @classmethod
    def open(
        cls,
        storage: str | None,
        study_dir: Path,
        *,
        fingerprint: Mapping[str, Any],
        metric: str = KL,
        cost: str = WEIGHT_BYTES,
        name: str = DEFAULT_NAME,
        lease_seconds: float = LEASE_SECONDS,
    ) -> "Study":
        """Create a study, or resume the one that is there.

        Args:
            storage: See :func:`autocomp.search.storage.open_storage`.
            study_dir: Study directory; the journal's home when ``storage`` is ``None``.
            fingerprint: Everything that decides what a value means (model, text, space, seed, …).
            metric: Name of the loss that is minimised.
            cost: Name of the cost that is minimised beside it.
            name: Name of the study within the storage.
            lease_seconds: How long a process may stay silent before its trial is taken over.

        Raises:
            ConfigError: If the study was made with another fingerprint; the message lists the
                fields.
            StoreError: If the storage cannot be opened.
        """
        study = optuna.create_study(
            storage=open_storage(storage, study_dir),
            study_name=name,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        wanted = json.loads(json.dumps(fingerprint))
        stored = study.user_attrs.get("fingerprint")
        if stored is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names([metric, cost])
            study.set_user_attr("study_dir", str(study_dir.resolve()))
            study.set_user_attr("fingerprint", wanted)
        elif difference := _differences(stored, wanted):
            place = without_password(storage or str(study_dir))
            raise ConfigError(
                f"the study {name!r} in {place} was made with other settings:\n  "
                + "\n  ".join(difference)
                + "\nUse these settings again, or choose another --study-dir or --storage."
            )
        return cls(study, study_dir, lease_seconds)

    @classmethod
    def open_existing(cls, source: str | Path, *, name: str = DEFAULT_NAME) -> "Study":
        """Open a study to read it, creating nothing.

        Args:
            source: A study directory, a journal file or a storage URL.
            name: Name of the study within the storage.

        Raises:
            ConfigError: If there is no such study.
        """
        storage, study_dir = existing_storage(source)
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError as error:
            names = ", ".join(optuna.get_all_study_names(storage)) or "none"
            place = without_password(str(source))
            raise ConfigError(
                f"{place} holds no study named {name!r}; it holds: {names}."
            ) from error
        return cls(study, study_dir or Path(study.user_attrs.get("study_dir", ".")))

    def next_logical(self) -> int:
        """Return the smallest logical index that no trial has claimed."""
        claimed = {trial.user_attrs["logical"] for trial in self._trials()}
        return next(index for index in range(len(claimed) + 1) if index not in claimed)

    def add(self, new: NewTrial) -> int | None:
        """Store a proposal as a running trial of this process.

        Returns:
            The trial's number; ``None`` when an earlier trial has this logical index or this plan,
            in which case the caller goes on with :meth:`next_logical`.
        """
        lease = Lease.take(self.lease_seconds)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(new.params),
            distributions=dict(new.distributions),
            user_attrs=new.attributes() | {"lease": lease.to_json()},
            constraints=dict(new.constraints),
        )
        self._storage.create_new_trial(self._id, template_trial=trial)
        stored = [t for t in self._trials() if t.user_attrs["lease"] == lease.to_json()]
        first, *copies = sorted(trial.number for trial in stored)
        for copy in copies:
            self.tell_failed(copy, f"a copy of trial {first}")
        return None if self._refuse_repeat(first) else first

    def renew_lease(self, number: int) -> bool:
        """Take or prolong the lease of a running trial; false when it is finished already."""
        return self._write(number, {"lease": Lease.take(self.lease_seconds).to_json()})

    def release(self, number: int) -> bool:
        """Give up a running trial, so that anyone may take it over at once."""
        return self._write(number, {"lease": None})

    def orphans(self) -> list[TrialRecord]:
        """Return running trials that nobody works on, to be evaluated under their numbers."""
        abandoned = [
            trial
            for trial in self._trials()
            if trial.state == TrialState.RUNNING
            and Lease.from_json(trial.user_attrs.get("lease")).abandoned
            and not self._refuse_repeat(trial.number)
        ]
        found = [self._record(trial) for trial in abandoned]
        return sorted(found, key=lambda record: record.logical)

    def tell_measured(self, number: int, result: Measured) -> bool:
        """Tell a loss measured to the top rung; one that is not finite fails the trial.

        Returns:
            False when the trial was finished already, by a process that had taken it over.
        """
        if not math.isfinite(result.loss):
            return self.tell_failed(number, f"{self.metric} is {result.loss}")
        values = [result.loss, float(self._record(self._trial(number)).cost)]
        return self._tell(number, TrialState.COMPLETE, result.attributes(self.metric), values)

    def tell_stopped(self, number: int, result: Measured, reason: str) -> bool:
        """Tell that a gate stopped the evaluation below the top rung."""
        if not math.isfinite(result.loss):
            return self.tell_failed(number, f"{self.metric} is {result.loss}")
        attributes = result.attributes(self.metric) | {"reason": reason}
        return self._tell(number, TrialState.PRUNED, attributes)

    def tell_infeasible(self, number: int, reason: str) -> bool:
        """Tell that a plan breaks a limit; it is not evaluated."""
        return self._tell(number, TrialState.PRUNED, {"reason": reason})

    def tell_failed(self, number: int, reason: str) -> bool:
        """Tell that an evaluation crashed or gave a number that is not finite."""
        return self._tell(number, TrialState.FAIL, {"reason": reason})

    def records(self) -> list[TrialRecord]:
        """Return all trials by logical index, one an index."""
        finished = sorted(self.finished(), key=quality, reverse=True)
        best = {record.number: record for record in finished}
        owners = _owners(self._trials())
        return [self._record(owners[i], best.get(owners[i].number)) for i in sorted(owners)]

    def best_finished(self) -> FinishedRecord | None:
        """Return the finished trial within the limits that has the lowest held-out loss."""
        finished = [r.finished for r in self.records() if r.finished and r.within_limits]
        return min(finished, key=quality, default=None)

    def front(self, *costs: str) -> Front:
        """Return the front of what the search measured; the same trials as ``best_trials``.

        Args:
            costs: Costs beside the loss; the one that the study minimises when none is given.

        Raises:
            ConfigError: If the study did not record a cost.
        """
        names = costs or (self.cost,)
        return Front.from_points(
            FrontPoint(r.number, (r.loss, *(r.cost_of(name) for name in names)))
            for r in self.records()
            if r.feasible and r.loss is not None
        )

    def _record(self, trial: FrozenTrial, finished: FinishedRecord | None = None) -> TrialRecord:
        return to_record(trial, self.metric, finished, self.cost)

    def _trials(self) -> list[FrozenTrial]:
        """Return the trials that autocomp made, by number."""
        trials = self.optuna.get_trials(deepcopy=False)
        return [trial for trial in trials if "logical" in trial.user_attrs]

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        found: int = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        return found

    def _refuse_repeat(self, number: int) -> bool:
        """Fail a running trial whose logical index or plan an earlier trial owns."""
        trials = self._trials()
        owners = _owners(trials)
        mine = next(trial for trial in trials if trial.number == number)
        owner = owners[mine.user_attrs["logical"]]
        digest = mine.user_attrs["digest"]
        twins = [t.number for t in owners.values() if t.user_attrs["digest"] == digest]
        if owner.number < number:
            reason = f"trial {owner.number} owns this logical index"
        elif min(twins) < number:
            reason = f"repeats the plan of trial {min(twins)}"
        else:
            return False
        self.tell_failed(number, reason)
        return True

    def _tell(
        self,
        number: int,
        state: TrialState,
        attributes: Mapping[str, Any],
        values: Sequence[float] | None = None,
    ) -> bool:
        """Write attributes, then the fidelity constraint, then the state, which seals them."""
        trial_id = self._trial_id(number)
        if not self._write(number, attributes):
            return False
        try:
            # The key is Trial.set_constraint's, which would not replace the value that a process
            # left here when it died just before it wrote the state.
            fidelity = 0.0 if state == TrialState.COMPLETE else 1.0
            self._storage.set_trial_system_attr(trial_id, f"constraints:{FIDELITY}", fidelity)
            self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True

    def _write(self, number: int, attributes: Mapping[str, Any]) -> bool:
        """Set user attributes; false when the trial is finished already."""
        trial_id = self._trial_id(number)
        try:
            for key, value in attributes.items():
                self._storage.set_trial_user_attr(trial_id, key, value)
        except UpdateFinishedTrialError:
            logger.info("trial %d was finished by another process", number)
            return False
        return True


def _owners(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the trial that owns each logical index: the one with the lowest number."""
    owners: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        owners.setdefault(trial.user_attrs["logical"], trial)
    return owners


def _differences(stored: Any, wanted: Any, path: str = "") -> list[str]:
    """Return one line a field that differs between two JSON values."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            line
            for key in sorted(stored.keys() | wanted.keys())
            for line in _differences(
                stored.get(key), wanted.get(key), f"{path}.{key}" if path else key
            )
        ]
    return [] if stored == wanted else [f"{path}: stored {stored!r}, now {wanted!r}"]
