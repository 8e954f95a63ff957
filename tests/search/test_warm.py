"""Warm starts of one study from the files of another."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from autocomp.config import StudyConfig, load_config
from autocomp.core.errors import ConfigError
from autocomp.core.progress import Silent
from autocomp.models.tiny import tiny
from autocomp.search.profile import Profile
from autocomp.search.run import Search, run_search
from autocomp.search.stored import first_context
from autocomp.search.study import Study
from autocomp.search.warm import read_profile, warm_start


def config(model: Path, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 512,
        "data.rungs": (512,),
        "data.heldout_tokens": 512,
        "budget.max_bytes": 45_000,
        "space.name": "bits",
        "search.trials": 6,
        "search.baselines": 3,
        "search.finalists": 1,
        "search.finish": "none",
    }
    return load_config(None, settings | changes)


@pytest.fixture(scope="module")
def source(trained_llama_path, tmp_path_factory) -> Path:
    """A finished study whose model is gone."""
    study_dir = tmp_path_factory.mktemp("source")
    model = shutil.copytree(trained_llama_path, study_dir / "model")
    run_search(config(model), study_dir=study_dir, storage=None, progress=Silent())
    shutil.rmtree(model)
    return study_dir


def test_a_profile_is_read_without_the_model(source):
    profile = read_profile(source)
    assert (profile.metric, profile.score) == ("kl_nats", "kronecker")
    assert {"q_proj", "down_proj", "embed_tokens"} <= {row.role for row in profile.sites}
    assert {row.depth for row in profile.sites} == {0.0, 1.0}
    assert any(
        name.startswith("w") and abs(value) > 1e-3 for name, value in profile.classes.items()
    )


def test_a_study_of_another_model_starts_from_it_and_keeps_it(source, tmp_path, tmp_path_factory):
    """A GPT-2 shares no role but those of its types; once read, the source may go as well."""
    model = tiny("gpt2", tmp_path_factory.mktemp("models") / "gpt2")
    copy = shutil.copytree(source, tmp_path / "copy")
    chosen = config(model, **{"search.warm_from": (str(copy),), "budget.max_bytes": 120_000})
    search = Search(chosen, tmp_path / "study", None, Silent())
    assert search.study.profiles == (read_profile(copy),)
    shutil.rmtree(copy)
    again = Search(chosen, tmp_path / "study", None, Silent())
    (context,) = again.contexts()
    assert context.transfer.shape == (len(context.effects.log_prior), 2)
    assert np.abs(context.transfer).max(axis=0).min() > 1e-3, "sites and classes are shared"
    stored = first_context(chosen, again.study, tmp_path / "study")
    np.testing.assert_array_equal(stored.transfer, context.transfer)
    other = chosen.model_copy(
        update={"search": chosen.search.model_copy(update={"warm_from": (str(source),)})}
    )
    with pytest.raises(ConfigError, match="was started from"):
        warm_start(other, again.study)


def test_what_cannot_be_read_is_refused_before_work(source, tmp_path, trained_llama_path):
    chosen = config(trained_llama_path, **{"search.warm_from": (str(tmp_path / "nothing"),)})
    with pytest.raises(ConfigError, match="nothing"):
        Search(chosen, tmp_path / "a", None, Silent())

    damaged = shutil.copytree(source, tmp_path / "damaged")
    (damaged / "scores.json").unlink()
    with pytest.raises(ConfigError, match="scores of the study are missing"):
        read_profile(damaged)

    other = shutil.copytree(source, tmp_path / "other")
    table = json.loads((other / "scores.json").read_text())
    (other / "scores.json").write_text(json.dumps(table | {"score": "weight"}))
    chosen = config(trained_llama_path, **{"search.warm_from": (str(other),)})
    with pytest.raises(ConfigError, match=r"corrected the score 'weight'.*uses 'kronecker'"):
        Search(chosen, tmp_path / "b", None, Silent())

    empty = tmp_path / "empty"
    Study.open(None, empty, fingerprint=Study.open_existing(source).fingerprint)
    shutil.copy(source / "scores.json", empty)
    with pytest.raises(ConfigError, match="unknown model"):
        read_profile(empty)


def test_a_study_without_warm_starts_is_as_before(source):
    study = Study.open_existing(source)
    assert (study.profiles, study.warm_sources) == ((), ())
    assert Profile.from_json(read_profile(source).to_json()) == read_profile(source)
