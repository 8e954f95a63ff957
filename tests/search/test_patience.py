"""Storages whose server goes away: waited for, given up, and never written to twice."""

from pathlib import Path

import optuna
import pytest

from autocomp.core.errors import StoreError
from autocomp.search import patience
from autocomp.search.patience import PatientStorage
from autocomp.search.records import Measured
from autocomp.search.study import Study
from autocomp.testing.study import check_study, fake_proposal, fake_space, outcome, run_fake


class Away(Exception):
    pass


class Broken(Exception):
    pass


class Failed(Exception):
    pass


class Flaky(optuna.storages.InMemoryStorage):
    """A storage whose answers to one kind of call are lost, for a while, or refused."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.times, self.done, self.error = "", 0, True, Away

    def lose(self, name: str, times: int, done: bool = True, error: type = Away) -> None:
        self.name, self.times, self.done, self.error = name, times, done, error

    def __getattribute__(self, name: str):
        found = super().__getattribute__(name)
        if name != super().__getattribute__("__dict__").get("name"):
            return found

        def call(*args, **kwargs):
            if not self.times:
                return found(*args, **kwargs)
            self.times -= 1
            if self.done:
                found(*args, **kwargs)
            raise Failed("the answer was lost") from self.error("connection reset\nby peer")

        return call


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_SECONDS", 0.02)


def opened(seconds: float = 5.0) -> tuple[Study, Flaky]:
    flaky = Flaky()
    storage = PatientStorage(flaky, "db://host", (Failed,), (Away,), seconds)
    study = optuna.create_study(storage=storage, directions=["minimize"] * 2)
    return Study(study, Path()), flaky


def test_it_behaves_as_the_storage_behind(tmp_path):
    study, _ = opened()
    run_fake(study, 0, 12)
    check_study(study, 12)
    plain = Study.open(None, tmp_path, fingerprint={})
    run_fake(plain, 0, 12)
    assert outcome(study) == outcome(plain)


def test_a_server_that_comes_back_is_waited_for(caplog):
    study, flaky = opened()
    flaky.lose("set_study_user_attr", 3, done=False)
    study.set_tokens("calibration", "base", 7)
    assert study.get_tokens() == {"calibration": 7}
    (line,) = [record.message for record in caplog.records if record.name == patience.__name__]
    assert "db://host does not answer (connection reset); trying again for 5 s" in line


def test_a_server_that_stays_away_is_given_up():
    study, flaky = opened(seconds=0.1)
    flaky.lose("get_all_trials", 1000, done=False)
    with pytest.raises(StoreError, match=r"db://host has not answered for 0 s: connection reset"):
        study.records()


def test_what_waiting_cannot_mend_fails_at_once():
    study, flaky = opened()
    flaky.lose("get_all_trials", 1, error=Broken)
    with pytest.raises(StoreError, match=r"db://host failed: connection reset\. .*put it right"):
        study.records()
    assert study.records() == []


def test_a_trial_that_was_stored_twice_is_measured_once():
    study, flaky = opened()
    flaky.lose("create_new_trial", 2)
    space = fake_space()
    number = study.add(fake_proposal(space, 0, 0, ()))
    assert number == 0
    assert [trial.state.name for trial in study.optuna.trials] == ["RUNNING", "FAIL", "FAIL"]
    assert [record.number for record in study.records()] == [0]
    assert study.next_logical() == 1


def test_a_value_whose_answer_was_lost_is_told_once():
    study, flaky = opened()
    number = study.add(fake_proposal(fake_space(), 0, 0, ()))
    flaky.lose("set_trial_state_values", 1)
    study.tell_measured(number, Measured(0.5, (0.4, 0.6), 4096))
    (record,) = study.records()
    assert (record.state, record.loss, record.unit_loss) == ("COMPLETE", 0.5, (0.4, 0.6))
    assert not study.tell_failed(number, "late")
