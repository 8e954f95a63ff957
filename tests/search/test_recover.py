"""Recovery of a finished trial of a tiny trained model."""

import shutil
from dataclasses import replace

import pytest
import torch

from autocomp.config import load_config
from autocomp.core.errors import ConfigError, PlanError
from autocomp.core.progress import Silent
from autocomp.formats.base import tensor_info
from autocomp.formats.io import load as load_tensors
from autocomp.formats.io import save
from autocomp.layers.native import read_extra, read_plan
from autocomp.search import recover
from autocomp.search.recover import recover_trial
from autocomp.search.run import finish_trial, run_search
from autocomp.search.study import Study

TOKEN = "lora-r4-30-b4"


class Killed(Exception):
    """Stands for the end of a process."""


class Killer(Silent):
    """Lets a process take some training steps, then ends it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self, amount: int = 1, note: str = "") -> None:
        if "min left" in note:
            self.steps -= 1
            if self.steps < 0:
                raise Killed


@pytest.fixture(scope="module")
def study_dir(trained_llama_path, tmp_path_factory):
    """A study whose best trial has two-bit codes and factors."""
    study_dir = tmp_path_factory.mktemp("study")
    settings = {
        "model": str(trained_llama_path),
        "data.window": 64,
        "data.calibration_tokens": 2048,
        "data.rungs": (128, 1024),
        "data.heldout_tokens": 1024,
        "budget.max_bytes": "1MB",
        "space.linear": ("magnitude-2:4+rtn-w3g32", "gptq-w2g32", "wsvd-p50"),
        "space.embedding": ("rtn-w8g32",),
        "space.bypass": False,
        "search.trials": 4,
        "search.finalists": 1,
        "search.finish": "none",
    }
    run_search(load_config(None, settings), study_dir=study_dir, storage=None, progress=Silent())
    return study_dir


@pytest.fixture(scope="module")
def best(study_dir):
    """The best trial, plainly finished."""
    return Study.open_existing(study_dir).best_finished()


@pytest.fixture(scope="module")
def recovered(study_dir, best):
    return recover_trial(study_dir, None, best.number, TOKEN, Silent())


def weights_file(study_dir, finished):
    return (study_dir / finished.artefact / "model.safetensors").read_bytes()


def test_held_out_kl_falls_and_bytes_stay(study_dir, best, recovered):
    """By a tenth at least: two bits and half the rank leave scales and factors much to gain."""
    assert recovered.before == best
    assert recovered.after.heldout_kl_nats < 0.9 * best.heldout_kl_nats
    assert recovered.after.weight_bytes == best.weight_bytes
    assert len(weights_file(study_dir, recovered.after)) == best.weight_bytes
    assert recovered.after.recovery == TOKEN
    assert recovered.after.artefact == f"{best.artefact}+{TOKEN}"
    assert not list((study_dir / "artefacts").glob(".*"))


def test_the_artefact_says_what_was_done_and_keeps_formats(study_dir, best, recovered):
    before, after = study_dir / best.artefact, study_dir / recovered.after.artefact
    assert read_plan(after).layers == read_plan(before).layers
    assert read_plan(after).recovery == TOKEN
    assert read_extra(after) == read_extra(before) | {"recovery": TOKEN}
    old, _ = load_tensors(before / "model.safetensors")
    new, _ = load_tensors(after / "model.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {tensor_info(old[name]) == tensor_info(new[name]) for name in old} == {True}
    assert changed
    assert all(name.startswith("model.layers") for name in changed)
    assert {name.rpartition(".")[2] for name in changed} <= {"codes", "scale", "values", "weight"}


def test_the_study_takes_the_better_artefact(study_dir, best, recovered):
    study = Study.open_existing(study_dir)
    assert study.best_finished() == recovered.after
    assert {f.recovery for f in study.finished(best.number)} == {"", TOKEN}
    record = next(r for r in study.records() if r.number == best.number)
    assert record.finished == recovered.after
    assert finish_trial(study_dir, None, best.number, Silent()) == recovered.after


def test_done_twice_is_done_once(study_dir, best, recovered):
    again = recover_trial(study_dir, None, best.number, TOKEN, Killer(0))
    assert again == recovered


def test_one_made_from_another_finish_is_made_again(study_dir, best, recovered, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(study_dir, copy)
    Study.open_existing(copy).set_finished(replace(recovered.after, finish="another", tokens=1))
    again = recover_trial(copy, None, best.number, TOKEN, Silent())
    timeless = {"seconds": 0, "measurements": ()}
    assert replace(again.after, **timeless) == replace(recovered.after, **timeless)


def test_a_killed_job_ends_with_the_same_bytes(study_dir, best, recovered, tmp_path, monkeypatch):
    """Killed twice: before the first checkpoint, so it starts afresh, and after the second."""
    monkeypatch.setattr(recover, "CHECKPOINT_STEPS", 7)
    copy = tmp_path / "study"
    shutil.copytree(study_dir, copy)
    shutil.rmtree(copy / recovered.after.artefact)
    for steps in (5, 20):
        with pytest.raises(Killed):
            recover_trial(copy, None, best.number, TOKEN, Killer(steps))
    (state,) = (copy / "artefacts").glob(f".trial-{best.number}+*.safetensors")
    assert int(load_tensors(state)[0]["steps"]) == 14
    done = Killer(30 - 14)
    after = recover_trial(copy, None, best.number, TOKEN, done).after
    assert after.heldout_kl_nats == recovered.after.heldout_kl_nats
    assert weights_file(copy, after) == weights_file(study_dir, recovered.after)
    assert not state.exists()


def test_a_state_of_another_training_is_not_used(study_dir, best, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(study_dir, copy)
    token = "lora-r1-2-b4"
    state = copy / "artefacts" / f".trial-{best.number}+{token}.safetensors"
    save(state, {"steps": torch.tensor(1)}, {"digest": "another", "seconds": 1.0})
    told = []
    listener = Silent()
    listener.log = told.append
    recover_trial(copy, None, best.number, token, listener)
    assert any("starting afresh" in text for text in told)


def test_an_unknown_recovery_is_refused_before_work(study_dir, best):
    with pytest.raises(ConfigError, match=r"Known: .*lora"):
        recover_trial(study_dir, None, best.number, "gptq-w4g64", Silent())
    with pytest.raises(PlanError, match="lora-r8-300"):
        recover_trial(study_dir, None, best.number, "lora-r8", Silent())
    with pytest.raises(ConfigError, match="trial 99"):
        recover_trial(study_dir, None, 99, TOKEN, Silent())
