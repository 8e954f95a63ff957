"""The throughput study on a tiny model: both ways give the same KL, and what it writes."""

import importlib.util
import json
from pathlib import Path

import pytest

from autocomp.models import load

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "throughput" / "measure.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("throughput_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kind_is_measured_by_both(study, tmp_path, trained_llama_path, capsys):
    """The loop's KL is ours but for the rounding to bf16, which costs less than 1e-3 nats here."""
    out = tmp_path / "new" / "throughput.json"
    sizes = ["--tokens", "256", "--window", "64", "--turns", "2"]
    study.main(["--model", str(trained_llama_path), "--out", str(out), *sizes])
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["settings"]["windows"] == [4, 64]
    assert [row["kind"] for row in record["rows"]] == list(study.KINDS)
    assert len({turn["plan"] for turn in record["turns"]}) == 6
    for turn in record["turns"]:
        assert turn["plain_kl_nats"] > 0
        assert turn["meter_s"] > 0
    for row in record["rows"]:
        assert row["turns"] == 2
        assert row["max_kl_difference_nats"] < 1e-3
    assert "| arbitrary |" in capsys.readouterr().out


def test_plans_differ_where_they_should(study, trained_llama_path):
    sketch = load(str(trained_llama_path)).sketch
    plans = study.Plans(sketch, seed=0)
    half, late = plans.next("half"), plans.next("late")

    def changed(plan):
        return [site for site in sketch.weights() if plan[site.name] != plans.start[site.name]]

    assert {site.block for site in changed(half)} == {1}
    assert all(site.block == 1 for site in changed(late))
    assert len(changed(late)) == 1
