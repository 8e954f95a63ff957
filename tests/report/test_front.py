"""The front as plain data."""

import csv
import io
import json
from dataclasses import replace

import pytest


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
    assert data["rank_correlation"] == {"spearman": 0.5, "kendall": 0.333, "pairs": 5}


def test_json_has_no_rank_correlation_before_anything_was_finished(empty):
    assert json.loads(empty.to_json_text())["rank_correlation"] is None


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


def test_another_cost_orders_the_points_and_bears_its_name(by_time):
    assert [p.trial for p in by_time.points] == [4, 2, 1, 3, 0]
    data = json.loads(by_time.to_json_text())
    assert (data["metric"], data["cost"]) == ("perplexity", "decode_ms")
    assert data["cost_sources"]["decode_ms"] == "modelled"
    best = next(row for row in data["front"] if row["trial"] == data["best"])
    assert best["decode_ms"] == 0.08
    assert best["weight_bytes"] == 80
    assert (best["perplexity"], best["heldout_perplexity"]) == (0.3, 0.33)
    assert data["hypervolume"]["by_trial"][-1] == {
        "trial": 2, "hypervolume": 0.02, "share": pytest.approx(0.2),
    }  # fmt: skip
    header = by_time.to_csv().splitlines()[0].split(",")
    assert {"decode_ms", "perplexity", "heldout_perplexity"} <= set(header)


def test_the_cost_of_an_artefact_is_its_file_or_what_was_predicted(info, by_time):
    assert info.point(4).finished_cost("weight_bytes") == 70
    assert by_time.point(4).finished_cost("decode_ms") == 0.07
