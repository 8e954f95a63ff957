"""Opening a study and choosing a trial."""

import pytest

from autocomp.cli.options import Place
from autocomp.cli.studies import choose_trial, new_study_place, open_view, summarise, timings_of
from autocomp.config import load_config
from autocomp.core.errors import ConfigError, InfeasibleError

from .conftest import empty_study, fill


def test_place_order_is_flag_file_default(tmp_path, monkeypatch):
    config = load_config(None, {"model": "org/name"})
    assert str(new_study_place(config, Place())[0]) == "runs/name"
    assert str(new_study_place(load_config("demo"), Place())[0]) == "runs/demo"
    assert new_study_place(load_config("demo"), Place(study_dir=tmp_path))[0] == tmp_path


def test_storage_order_is_flag_autocomp_optuna(monkeypatch):
    config = load_config("demo")
    assert new_study_place(config, Place())[1] is None
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///o.db")
    assert new_study_place(config, Place())[1] == "sqlite:///o.db"
    monkeypatch.setenv("AUTOCOMP_STORAGE", "sqlite:///a.db")
    assert new_study_place(config, Place())[1] == "sqlite:///a.db"
    assert new_study_place(config, Place(storage="sqlite:///f.db"))[1] == "sqlite:///f.db"


def test_open_by_directory_url_and_environment(tmp_path, study_dir, monkeypatch):
    assert open_view(str(study_dir)).study_dir == study_dir
    url = f"sqlite:///{tmp_path / 's.db'}"
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    fill(empty_study(directory, url))
    view = open_view(url)
    assert view.storage == url
    assert view.study_dir == directory.resolve()
    monkeypatch.setenv("AUTOCOMP_STORAGE", url)
    assert open_view(str(directory)).storage == url


def test_no_study_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no study"):
        open_view(str(tmp_path / "nothing"))


def test_summary_carries_settings_and_timings(study_dir):
    (study_dir / "timings.json").write_text('[{"stage": "score", "seconds": 1.5}]')
    info = summarise(open_view(str(study_dir)))
    assert info.settings["corpus"] == "pydoc"
    assert info.settings["window"] == 512
    assert info.settings["tokens"] == 16384
    assert info.settings["max_bytes"] == 80_000_000
    assert (info.best, info.best_uniform) == (2, 0)
    assert info.timings[0]["stage"] == "score"
    assert {row["family"] for row in info.families} >= {"sparse", "quantized"}


def test_timings_of_an_unfinished_study_are_empty(tmp_path):
    assert timings_of(tmp_path) == []


def test_choose_trial(study_dir):
    view = open_view(str(study_dir))
    assert choose_trial(view, best=True) == 2
    assert choose_trial(view, trial=1) == 1
    assert choose_trial(view, under=70_000_000) == 3
    assert choose_trial(view, knee=True) in {1, 2, 3}


@pytest.mark.parametrize("ways", [{}, {"best": True, "knee": True}, {"trial": 0, "under": 5}])
def test_exactly_one_way(study_dir, ways):
    with pytest.raises(ConfigError, match="exactly one"):
        choose_trial(open_view(str(study_dir)), **ways)


def test_unknown_trial_names_the_range(study_dir):
    with pytest.raises(ConfigError, match="0 to 3"):
        choose_trial(open_view(str(study_dir)), trial=17)


def test_nothing_that_small(study_dir):
    with pytest.raises(InfeasibleError, match="60000000"):
        choose_trial(open_view(str(study_dir)), under=1000)


def test_empty_study(tmp_path):
    empty_study(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no trials yet"):
        choose_trial(open_view(str(tmp_path / "empty")), best=True)
