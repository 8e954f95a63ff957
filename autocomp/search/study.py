"""The study: an Optuna study that holds every proposal, its plan and what was measured.

One file of ours decides how trials are told, so that ``study.best_trials`` of plain Optuna is our
front:

* measured to the top rung: ``COMPLETE`` with (KL in nats, bytes) and the constraint ``fidelity``
  at 0;
* infeasible, or stopped at a rung: ``PRUNED`` without values, ``fidelity`` at 1, the KL as
  attribute;
* not finite, or crashed: ``FAIL`` with the reason.

A trial is created in one write, ``RUNNING``, with a lease. Several processes may write to one
storage: the lowest trial number owns a logical index, and the first trial of a plan owns the
plan; the others are told ``FAIL`` before they are evaluated.

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

from autocomp.core.errors import ConfigError
from autocomp.core.spec import LayerSpec
from autocomp.core.variant import BASE
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
OBJECTIVES = ("kl_nats", "weight_bytes")
LEASE_SECONDS = 600.0

logger = logging.getLogger(__name__)


class Study:
    """An Optuna study of ours. Use :meth:`open` to search and :meth:`open_existing` to read.

    Args:
        study: The Optuna study.
        study_dir: Where artefacts lie.
        lease_seconds: How long a process may stay silent before its trial is taken over.
    """

    def __init__(
        self, study: optuna.Study, study_dir: Path, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self.optuna = study
        self.study_dir = study_dir
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
        name: str = DEFAULT_NAME,
        lease_seconds: float = LEASE_SECONDS,
    ) -> "Study":
        """Create a study, or resume the one that is there.

        Args:
            storage: See :func:`autocomp.search.storage.open_storage`.
            study_dir: Study directory; the journal's home when ``storage`` is ``None``.
            fingerprint: Everything that decides what a value means (model, text, space, seed, …).
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
            directions=["minimize"] * len(OBJECTIVES),
            load_if_exists=True,
        )
        wanted = json.loads(json.dumps(fingerprint))
        stored = study.user_attrs.get("fingerprint")
        if stored is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(list(OBJECTIVES))
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

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings that the study was made with."""
        return dict(self.optuna.user_attrs.get("fingerprint", {}))

    def bind(self, name: str, value: str) -> None:
        """Store a fact that must stay what it is, such as the digest of the model's weights.

        Raises:
            ConfigError: If the study was made with another value.
        """
        stored = self.optuna.user_attrs.get(name)
        if stored is None:
            self.optuna.set_user_attr(name, value)
        elif stored != value:
            raise ConfigError(
                f"the study in {self.study_dir} was made with another {name.replace('_', ' ')}: "
                f"stored {stored[:16]}, now {value[:16]}. The model's files have changed; put the "
                "old ones back, or choose another --study-dir."
            )

    def set_lists(self, lists: Mapping[str, Sequence[LayerSpec]], variant: str = BASE) -> None:
        """Store the option lists of a variant, or extend the stored ones.

        Raises:
            ConfigError: If a stored list would change otherwise than by appending, because the
                integers of earlier trials would then mean something else.
        """
        key = _lists_key(variant)
        wanted = {name: [spec.token() for spec in specs] for name, specs in lists.items()}
        stored = self.optuna.user_attrs.get(key, {})
        for name, tokens in stored.items():
            if wanted.get(name, [])[: len(tokens)] != tokens:
                raise ConfigError(
                    f"the options of {name!r} were {tokens} and would become "
                    f"{wanted.get(name, [])}; a study's lists can only be appended to. Use the "
                    "same options first, or start another study."
                )
        if wanted != stored:
            self.optuna.set_user_attr(key, wanted)

    def get_lists(self, variant: str = BASE) -> dict[str, tuple[LayerSpec, ...]]:
        """Return the option lists of a variant; empty before they were set."""
        stored = self.optuna.user_attrs.get(_lists_key(variant), {})
        return {
            name: tuple(LayerSpec.parse(token) for token in tokens)
            for name, tokens in stored.items()
        }

    def set_variant(self, token: str, record: Mapping[str, Any]) -> None:
        """Store what is known of a prepared variant, JSON values."""
        self.optuna.set_user_attr(f"variant:{token}", dict(record))

    def get_variant(self, token: str) -> dict[str, Any] | None:
        """Return what is known of a variant; ``None`` before it was prepared."""
        found: dict[str, Any] | None = self.optuna.user_attrs.get(f"variant:{token}")
        return found

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
        created = self._storage.create_new_trial(self._id, template_trial=trial)
        number: int = self._storage.get_trial_number_from_id(created)
        return None if self._refuse_repeat(number) else number

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
        return sorted(map(to_record, abandoned), key=lambda record: record.logical)

    def tell_measured(self, number: int, result: Measured) -> bool:
        """Tell a KL measured to the top rung; one that is not finite fails the trial.

        Returns:
            False when the trial was finished already, by a process that had taken it over.
        """
        if not math.isfinite(result.kl_nats):
            return self.tell_failed(number, f"the KL is {result.kl_nats}")
        size = self._trial(number).user_attrs["weight_bytes"]
        values = [result.kl_nats, float(size)]
        return self._tell(number, TrialState.COMPLETE, result.attributes(), values)

    def tell_stopped(self, number: int, result: Measured, reason: str) -> bool:
        """Tell that a gate stopped the evaluation below the top rung."""
        if not math.isfinite(result.kl_nats):
            return self.tell_failed(number, f"the KL is {result.kl_nats}")
        return self._tell(number, TrialState.PRUNED, result.attributes() | {"reason": reason})

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
        return [to_record(owners[i], best.get(owners[i].number)) for i in sorted(owners)]

    def finished(self, number: int | None = None) -> list[FinishedRecord]:
        """Return all finished artefacts, or those of one trial: the plain one and trained ones."""
        found = [
            FinishedRecord.from_json(value)
            for key, value in self.optuna.user_attrs.items()
            if key.startswith("finished:")
        ]
        return [record for record in found if number is None or record.number == number]

    def set_finished(self, record: FinishedRecord) -> None:
        """Store what a finished trial measured; a study attribute, for its trial is closed."""
        token = f":{record.recovery}" if record.recovery else ""
        self.optuna.set_user_attr(f"finished:{record.number}{token}", record.to_json())

    def best_finished(self) -> FinishedRecord | None:
        """Return the finished trial within the limits that has the lowest held-out KL."""
        finished = [r.finished for r in self.records() if r.finished and r.within_limits]
        return min(finished, key=quality, default=None)

    def front(self) -> Front:
        """Return the front of what the search measured; the same trials as ``best_trials``."""
        return Front.from_points(
            FrontPoint(record.number, record.kl_nats, record.weight_bytes)
            for record in self.records()
            if record.feasible and record.kl_nats is not None
        )

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


def _lists_key(variant: str) -> str:
    """Return the study attribute that holds a variant's option lists."""
    return "lists" if variant == BASE else f"lists:{variant}"


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
