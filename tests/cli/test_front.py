"""``autocomp front`` on a real study."""

import csv
import json

import pytest

from autocomp.cli.front import best_bits
from autocomp.cli.studies import open_view, summarise


def test_table(run, study_dir):
    answer = run("front", study_dir)
    assert answer.code == 0
    assert "0.3300 ±0.0100" in answer.out
    assert "best uniform" in answer.out


def test_json(run, study_dir):
    data = json.loads(run("front", study_dir, "--json").out)
    assert data["best"] == 2
    assert [row["trial"] for row in data["front"]] == [3, 1, 2, 0]


def test_pictures_and_numbers_beside(run, study_dir, tmp_path):
    png, html = tmp_path / "a" / "front.png", tmp_path / "b" / "report.html"
    answer = run("front", study_dir, "--plot", png, "--html", html, "--json")
    assert answer.code == 0
    json.loads(answer.out)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "Plotly.newPlot" in html.read_text("utf-8")
    for path in (png, html):
        with path.with_suffix(".csv").open() as file:
            assert len(list(csv.DictReader(file))) == 4
        assert json.loads(path.with_suffix(".json").read_text())["best"] == 2
        assert f"wrote {path}" in answer.err


def test_a_model_that_is_gone_costs_only_the_bits(study_dir, capsys):
    view = open_view(str(study_dir))
    assert best_bits(view, summarise(view)) is None
    assert "left out" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["nowhere", "sqlite:///nowhere.db"])
def test_no_study_exits_with_2(run, place):
    answer = run("front", place)
    assert answer.code == 2
    assert "no study" in answer.err
