"""What scripts of studies share."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from autocomp.config import load_config
from autocomp.search.experiment import described, results_path, shared_settings, write_results


@pytest.fixture
def asked() -> Namespace:
    return Namespace(
        model="/some/where/tiny",
        corpus="/else/text.jsonl",
        window=64,
        calibration=640,
        seeds=3,
        out=None,
    )


def test_settings_are_those_of_a_study(asked: Namespace) -> None:
    config = load_config(None, shared_settings(asked, 7, Path("dealt.jsonl")))
    assert (config.model, config.seed) == (asked.model, 7)
    assert (config.data.window, config.data.calibration_tokens) == (64, 640)
    assert (config.data.corpus, config.data.calibration) == ("dealt.jsonl", "corpus")
    assert shared_settings(asked, 0, Path("dealt.jsonl"), "other")["model"] == "other"


def test_results_name_no_folder_and_what_they_depend_on(asked: Namespace, tmp_path: Path) -> None:
    path = results_path(asked, tmp_path / "results")
    assert path == tmp_path / "results" / "tiny.json"
    settings = described(asked, "seeds")
    assert settings == {
        "model": "tiny",
        "corpus": "text.jsonl",
        "window": 64,
        "calibration": 640,
    }
    result = write_results(path, settings, {"rows": [1]})
    assert json.loads(path.read_text("utf-8")) == result
    assert result["rows"] == [1]
    assert result["versions"]["torch"]
    assert result["hardware"]


def test_a_given_file_is_taken(asked: Namespace, tmp_path: Path) -> None:
    asked.out = tmp_path / "new" / "mine.json"
    assert results_path(asked, tmp_path) == asked.out
    assert asked.out.parent.is_dir()
