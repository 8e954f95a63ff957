"""``autocomp show`` around a fake explanation."""

import json

import pytest

from autocomp.cli.show import nearest_sizes
from autocomp.cli.studies import open_view
from autocomp.core.spec import LayerSpec
from autocomp.search.explain import (
    KINDS,
    Alternative,
    PlanRow,
    PlanTable,
    kind_of_change,
    margins,
)

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


MIXED = (
    Alternative("rtn-w3g64", -1000, 0.03, "bits"),
    Alternative("rtn-w2g64", -2000, 0.2, "bits"),
    Alternative("rtn-w8g64", 4000, -0.02, "bits"),
    Alternative("wanda-s70+rtn-w4g64", -1200, 0.3, "sparsity"),
    Alternative("wanda-s50+rtn-w4g64", -800, 0.05, "sparsity"),
    Alternative("wanda-2:4+rtn-w4g64", -700, 0.06, "sparsity"),  # beaten by its own kind
    Alternative("svd-p60+rtn-w8g64", 500, 0.4, "rank"),  # beaten by what is chosen
)


def test_margins_are_the_next_step_of_every_kind_either_way():
    found = margins(MIXED)
    tokens = {
        kind: [step and step.token for step in (margin.cheaper, margin.dearer)]
        for kind, margin in found.items()
    }
    assert tokens == {
        "bits": ["rtn-w3g64", "rtn-w8g64"],
        "sparsity": ["wanda-s50+rtn-w4g64", None],
    }
    assert found["bits"].cheaper.price == pytest.approx(0.03 / 0.001)
    assert found["bits"].dearer.price == pytest.approx(0.02 / 0.004)


@pytest.mark.parametrize(
    ("chosen", "other", "kind"),
    [
        ("rtn-w4g64", "gptq-w3g64", "bits"),
        ("dense", "rtn-w8g64", "bits"),
        ("rtn-w4g64", "wanda-2:4+rtn-w4g64", "sparsity"),
        ("wanda-s50+rtn-w4g64", "wanda-s60+rtn-w6g64", "sparsity"),
        ("wanda-s50+rtn-w4g64", "wanda-s50+rtn-w3g64", "bits"),
        ("wanda-s50+rtn-w4g64", "wanda-s50+dsnot+rtn-w4g64", "sparsity"),
        ("rtn-w4g64", "svd-p60+rtn-w8g64", "rank"),
        ("gptq-w3g64", "gptq-w3g64+lorc-r8-w8", "rank"),
        ("rtn-w8-sym", "rtn-w8-sym+absmax-a8", "activations"),
        ("gptq-w4g64", "awq+gptq-w4g64", "input"),
        ("dense", "kivi-k4v4", "cache"),
    ],
)
def test_kind_of_change(chosen, other, kind):
    assert kind_of_change(LayerSpec.parse(chosen), LayerSpec.parse(other)) == kind
    assert kind in KINDS


def test_json_and_table_price_the_margins(run, study_dir, asked):
    data = json.loads(run("show", study_dir, "--json").out)
    cheaper = data["rows"][0]["margins"]["bits"]["cheaper"]
    assert cheaper == {
        "token": "rtn-w3g64",
        "kind": "bits",
        "delta_bytes": -1000,
        "delta_kl_nats": 0.03,
        "price_per_mb": pytest.approx(30.0),
    }
    out = run("show", study_dir).out
    assert "Prices at the margin" in out
    line = [line for line in out.splitlines() if "up_proj" in line][-1]
    assert line.replace("│", " ").split()[-2:] == ["30", "7.5"]


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
