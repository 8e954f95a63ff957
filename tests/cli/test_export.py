"""``autocomp export`` around a fake exporter."""

import json
from pathlib import Path

import pytest

from autocomp.export import ExportReport

from .conftest import empty_study


@pytest.fixture
def exported(monkeypatch):
    seen = []

    def finish_trial(study_dir, storage, number, progress):
        from autocomp.search.records import FinishedRecord

        seen.append(("finish", number))
        return FinishedRecord(number, f"artefacts/trial-{number}", 0.3, 0.01, 10.0, 79, 0.3, 0.01)

    def export_model(artefact, out, *, format, base_model, force):
        seen.append((artefact, out, format, base_model, force))
        return ExportReport(Path(out), format, 79_900_000, 0.0)

    monkeypatch.setattr("autocomp.search.run.finish_trial", finish_trial)
    monkeypatch.setattr("autocomp.export.export_model", export_model)
    return seen


def test_best(run, study_dir, tmp_path, exported):
    out = tmp_path / "best"
    answer = run("export", study_dir, "--best", "--out", out)
    assert answer.code == 0
    artefact = study_dir / "artefacts" / "trial-2"
    assert exported == [("finish", 2), (artefact, out, "native", "no-such-model", False)]
    assert "79.90 MB" in answer.out
    assert f"autocomp eval {out}" in answer.out


def test_an_unfinished_trial_is_finished_first(run, study_dir, tmp_path, exported):
    answer = run(
        "export", study_dir, "--under", "70MB", "--format", "hf", "--out", tmp_path / "x", "--json"
    )
    data = json.loads(answer.out)
    assert (data["trial"], data["format"]) == (3, "hf")
    assert exported[0] == ("finish", 3)


def test_hf_says_that_it_saves_no_bytes(run, study_dir, tmp_path, exported):
    answer = run("export", study_dir, "--trial", 0, "--format", "hf", "--out", tmp_path / "x")
    assert "saves no bytes" in answer.out


def test_a_folder_that_is_not_empty_needs_force(run, study_dir, tmp_path, exported):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    answer = run("export", study_dir, "--best", "--out", tmp_path / "full")
    assert answer.code == 1
    assert "--force" in answer.err
    assert exported == []
    assert run("export", study_dir, "--best", "--out", tmp_path / "full", "--force").code == 0
    assert exported[-1][-1] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--best", "--format", "natve"], "Did you mean 'native'"),
        (["--best", "--knee"], "exactly one"),
        ([], "exactly one"),
        (["--under", "80M"], "80MiB"),
    ],
)
def test_bad_choices_exit_with_2(run, study_dir, tmp_path, exported, arguments, message):
    answer = run("export", study_dir, "--out", tmp_path / "x", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert exported == []


def test_an_empty_study_exits_with_2(run, tmp_path, exported):
    empty_study(tmp_path / "empty")
    answer = run("export", tmp_path / "empty", "--best", "--out", tmp_path / "x")
    assert answer.code == 2
    assert "no trials yet" in answer.err
