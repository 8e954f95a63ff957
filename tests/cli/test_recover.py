"""``autocomp recover`` around a fake trainer; the real one runs in the main job."""

import json
from dataclasses import replace

import pytest

from autocomp.search.records import FinishedRecord
from autocomp.search.recover import Recovery


@pytest.fixture
def trainer(monkeypatch):
    """Calls of the trainer; ``kl`` is what it reaches."""

    class Trainer:
        def __init__(self):
            self.kl, self.calls = 0.2, []

        def __call__(self, study_dir, storage, number, token, progress):
            self.calls.append((study_dir, storage, number, token))
            if self.kl is None:
                raise KeyboardInterrupt
            before = FinishedRecord(
                number, f"artefacts/trial-{number}", 0.33, 0.01, 10.0, 79_000, 0.33, 0.01
            )
            reached = {"heldout_kl_nats": self.kl, "heldout_loss": self.kl}
            after = replace(before, **reached, seconds=90.0, recovery=token)
            return Recovery(before, after)

    trainer = Trainer()
    monkeypatch.setattr("autocomp.search.recover.recover_trial", trainer)
    return trainer


def test_best(run, study_dir, trainer):
    answer = run("recover", study_dir, "--best")
    assert answer.code == 0
    assert trainer.calls == [(study_dir, None, 2, "lora-r8-120")]
    assert "0.3300 → 0.2000" in answer.out
    assert "0.0790 MB as before" in answer.out
    assert f"autocomp export {study_dir} --trial 2" in answer.out


def test_json_has_both_sides(run, study_dir, trainer):
    answer = run("recover", study_dir, "--trial", 0, "--method", "lora-r4-20", "--json")
    data = json.loads(answer.out)
    assert data["trial"] == data["before"]["number"] == 0
    assert (data["before"]["recovery"], data["after"]["recovery"]) == ("", "lora-r4-20")


def test_it_says_when_training_did_not_help(run, study_dir, trainer):
    trainer.kl = 0.4
    answer = run("recover", study_dir, "--best")
    assert answer.code == 0
    assert "not better" in answer.out


def test_an_interrupted_job_says_how_to_go_on(run, study_dir, trainer):
    trainer.kl = None
    answer = run("recover", study_dir, "--best")
    assert answer.code == 130
    assert "same command" in answer.err


@pytest.mark.parametrize("choice", [(), ("--best", "--trial", 0), ("--trial", 77)])
def test_a_bad_choice_exits_with_2(run, study_dir, trainer, choice):
    assert run("recover", study_dir, *choice).code == 2
    assert trainer.calls == []


def test_help_has_an_example(run):
    answer = run("recover", "--help")
    assert answer.code == 0
    assert "autocomp recover runs/demo --best" in answer.out
