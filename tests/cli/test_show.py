"""``autocomp show`` around a fake explanation."""

import json

import pytest

from autocomp.cli.show import nearest_sizes
from autocomp.cli.studies import open_view
from autocomp.search.explain import Alternative, PlanRow, PlanTable

OPTIONS = tuple(
    Alternative(f"rtn-w{bits}g64", size, kl)
    for bits, size, kl in ((8, 4000, -0.02), (3, -1000, 0.03), (2, -2000, 0.2), (6, 2000, -0.015))
)


@pytest.fixture
def asked(monkeypatch):
    seen = []

    def show_trial(study_dir, storage, number):
        seen.append((study_dir, storage, number))
        record = open_view(str(study_dir)).study.records()[number]
        row = PlanRow("model.layers.0.mlp.up_proj", (128, 64), "rtn-w4g64", 4352, 0.012, OPTIONS)
        return PlanTable(record, 79_900_000, 0.31, (row,))

    monkeypatch.setattr("autocomp.search.explain.show_trial", show_trial)
    return seen


def test_best_by_default(run, study_dir, asked):
    answer = run("show", study_dir)
    assert answer.code == 0
    assert asked == [(study_dir, None, 2)]
    assert "model.layers.0.mlp.up_proj" in answer.out
    assert "128×64" in answer.out
    assert "rtn-w3g64: -1,000 B, +3.00e-02" in answer.out
    assert "rtn-w6g64: +2,000 B" in answer.out
    assert "rtn-w8g64" not in answer.out


def test_json_has_every_alternative(run, study_dir, asked):
    data = json.loads(run("show", study_dir, "--trial", 1, "--json").out)
    assert data["trial"] == 1
    assert data["predicted_kl_nats"] == 0.31
    assert len(data["rows"][0]["alternatives"]) == 4


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [-1000, 2000]), (9, [-2000, -1000, 2000, 4000])]
)
def test_nearest_sizes(count, expected):
    assert [option.delta_bytes for option in nearest_sizes(OPTIONS, count)] == expected


def test_beaten_options_are_left_out():
    beaten = (
        Alternative("larger-and-worse", 10, 0.001),
        Alternative("smaller-but-beaten", -900, 0.04),
        Alternative("same-bytes-worse", 2000, -0.01),
    )
    assert nearest_sizes((*OPTIONS, *beaten), 9) == nearest_sizes(OPTIONS, 9)


def test_unknown_trial_exits_with_2(run, study_dir, asked):
    assert run("show", study_dir, "--trial", 99).code == 2
    assert asked == []
