"""The coverage study on KLs that are skewed and share their windows, as those of real text."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "coverage" / "measure.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("coverage_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path, losses):
    rows = [{"name": f"m{i}", "window_kl": row} for i, row in enumerate(losses)]
    path.write_text(json.dumps({"text": "synthetic", "rows": rows}), encoding="utf-8")
    return path


def test_table_of_skewed_losses(study, tmp_path, capsys):
    """95 % intervals cover 92 to 98 %; without the finite text's size they cover more, if wider.

    Of 280 windows 64 are 23 %, so the interval is 1/√(1 − 0.23) = 1.14 times too wide.
    """
    rng = np.random.default_rng(0)
    level = np.exp(np.linspace(-1.5, 0, 6))[:, None]
    losses = level * rng.lognormal(0, 0.2, 280) * rng.lognormal(0, 0.1, (6, 280))
    out = tmp_path / "new" / "coverage.json"
    study.main([str(write(tmp_path / "kls.json", losses.tolist())), "--out", str(out)])
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["settings"]["text"] == "synthetic"
    assert record["settings"]["windows"] == 280
    assert [model["name"] for model in record["models"]] == [f"m{i}" for i in range(6)]
    rows = {(r["windows"], r["finite_population"], r["prior"]): r for r in record["rows"]}
    assert len(rows) == 16
    for (_, finite, _), row in rows.items():
        if finite:
            assert 0.92 <= row["coverage"] <= 0.98
        assert row["lowest_pair"] <= row["coverage"] <= row["highest_pair"]
    blind, aware = rows[64, False, False], rows[64, True, False]
    assert blind["coverage"] > aware["coverage"]
    ratio = blind["relative_half_width"] / aware["relative_half_width"]
    assert ratio == pytest.approx((1 - 64 / 280) ** -0.5)
    assert len(capsys.readouterr().out.splitlines()) == 2 + 16


def test_two_models_have_no_prior_of_others(study):
    losses = np.random.default_rng(0).gamma(4.0, 0.1, (2, 20))
    rows = study.coverage(losses)
    assert {row["prior"] for row in rows} == {False}
    assert {row["windows"] for row in rows} == {8, 16}


def test_models_of_other_texts_are_refused(study, tmp_path, capsys):
    path = write(tmp_path / "kls.json", [[0.1, 0.2], [0.1]])
    with pytest.raises(SystemExit):
        study.main([str(path), "--out", str(tmp_path / "no.json")])
    assert "got [1, 2] windows" in capsys.readouterr().err
