"""The front as plain data."""

import csv
import io
import json
from dataclasses import replace

import pytest

from autocomp.report.front import front_info


def test_points_are_the_feasible_trials_by_bytes(info):
    assert [p.trial for p in info.points] == [4, 2, 1, 3, 0]
    assert info.counts == {"COMPLETE": 6, "PRUNED": 1}


def test_front_holds_non_dominated_and_finished(info):
    assert [p.trial for p in info.front] == [4, 2, 1, 3, 0]
    assert [p.trial for p in info.points if p.on_front] == [4, 2, 1, 3]
    unfinished = info.point(1)
    assert unfinished.heldout_loss is None
    assert unfinished.file_bytes is None


def test_best_is_a_finished_one(info):
    assert info.best == 3
    assert info.best_uniform == 0
    assert info.point(info.best).heldout_loss == pytest.approx(0.33)
    assert info.point(None) is None


def test_rank_correlation_needs_three_finished(info, empty):
    assert info.rank_correlation == pytest.approx(1.0)
    assert empty.rank_correlation is None


def test_rank_correlation_sees_a_reversal():
    class Done:
        heldout_loss_se, perplexity, weight_bytes, recovery = 0.0, 1.0, 1, ""

        def __init__(self, kl):
            self.heldout_loss = self.heldout_kl_nats = kl

    class Trial:
        family, origin, weight_bytes, state, feasible = "quantized", "x", 1, "COMPLETE", True

        def __init__(self, number, kl, heldout):
            self.number, self.loss, self.finished = number, kl, Done(heldout)

    found = front_info([Trial(0, 0.1, 3), Trial(1, 0.2, 2), Trial(2, 0.3, 1)], [])
    assert found.rank_correlation == pytest.approx(-1.0)


def test_empty_study(empty):
    assert empty.front == ()
    assert empty.best is None
    assert json.loads(empty.to_json_text())["front"] == []


def test_json_keeps_searched_and_finished_apart(info):
    data = json.loads(info.to_json_text())
    best = next(row for row in data["front"] if row["trial"] == data["best"])
    assert best["kl_nats"] == 0.30
    assert best["heldout_kl_nats"] == 0.33
    assert data["settings"]["corpus"] == "pydoc"
    assert data["timings"][0]["stage"] == "score"


def test_losses_bear_the_name_of_the_metric(by_error):
    data = json.loads(by_error.to_json_text())
    assert data["metric"] == "task_error"
    best = next(row for row in data["front"] if row["trial"] == data["best"])
    assert (best["task_error"], best["heldout_task_error"], best["heldout_se"]) == (
        0.3,
        0.33,
        0.01,
    )
    assert best["heldout_kl_nats"] == 0.33
    assert "kl_nats" not in best
    header = by_error.to_csv().splitlines()[0].split(",")
    assert {"task_error", "heldout_task_error", "heldout_kl_nats"} <= set(header)


def test_json_says_how_far_to_believe_it(info):
    data = json.loads(info.to_json_text())
    assert data["winners_curse"] == {"tied": 2, "compared": 5, "optimism": 0.0123}
    assert [row["trial"] for row in data["finalists"]] == [3, 0]
    assert data["tokens"]["search"] == 123_456


def test_ratio_to_the_best_uniform_plan(info, empty):
    assert info.heldout_ratio == pytest.approx(0.33 / 0.55)
    assert empty.heldout_ratio is None
    trained = tuple(
        replace(p, recovery="lora-r8-300") if p.trial == info.best else p for p in info.points
    )
    assert replace(info, points=trained).heldout_ratio is None, "not trained alike"


def test_csv_has_one_row_a_point(info):
    rows = list(csv.DictReader(io.StringIO(info.to_csv())))
    assert len(rows) == len(info.points)
    assert set(rows[0]) == set(info.points[0].to_json("kl_nats"))
    assert rows[1]["heldout_kl_nats"] == ""
