"""The front as plain data."""

import csv
import io
import json

import pytest

from autocomp.report.front import Point, front_info


def test_points_are_the_feasible_trials_by_bytes(info):
    assert [p.trial for p in info.points] == [4, 2, 1, 3, 0]
    assert info.counts == {"COMPLETE": 6, "PRUNED": 1}


def test_front_holds_non_dominated_and_finished(info):
    assert [p.trial for p in info.front] == [4, 2, 1, 3, 0]
    assert [p.trial for p in info.points if p.on_front] == [4, 2, 1, 3]
    unfinished = info.point(1)
    assert unfinished.heldout_kl_nats is None
    assert unfinished.file_bytes is None


def test_best_is_a_finished_one(info):
    assert info.best == 3
    assert info.best_uniform == 0
    assert info.point(info.best).heldout_kl_nats == pytest.approx(0.33)
    assert info.point(None) is None


def test_rank_correlation_needs_three_finished(info, empty):
    assert info.rank_correlation == pytest.approx(1.0)
    assert empty.rank_correlation is None


def test_rank_correlation_sees_a_reversal():
    class Done:
        heldout_se, perplexity, weight_bytes, recovery = 0.0, 1.0, 1, ""

        def __init__(self, kl):
            self.heldout_kl_nats = kl

    class Trial:
        family, origin, weight_bytes, state, feasible = "quantized", "x", 1, "COMPLETE", True

        def __init__(self, number, kl, heldout):
            self.number, self.kl_nats, self.finished = number, kl, Done(heldout)

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


def test_csv_has_one_row_a_point(info):
    rows = list(csv.DictReader(io.StringIO(info.to_csv())))
    assert len(rows) == len(info.points)
    assert set(rows[0]) == set(Point.__dataclass_fields__)
    assert rows[1]["heldout_kl_nats"] == ""
