"""``autocomp bench`` on tiny shapes and a tiny model."""

import json

import pytest
import torch

from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.evaluate.forms import Forms
from autocomp.evaluate.latency import ModelBench
from autocomp.models import load

SMALL = ("--repeats", 3, "--quiet", "--device", "cpu", "--dtype", "float32")


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch):
    monkeypatch.setattr("autocomp.evaluate.peaks.MEMORY_BYTES", 2**16)
    monkeypatch.setattr("autocomp.evaluate.peaks.PRODUCT_SIZE", 64)
    monkeypatch.setattr("autocomp.evaluate.bench.COLD_BYTES", 2**14)


def made_of(source, token):
    """Return a context of a native folder of a model with all linears in one format."""
    loaded = load(str(source))
    linears = [site.name for site in loaded.sketch.sites if site.kind == "linear"]
    bench = ModelBench(loaded, torch.device("cpu"), torch.float32, Forms(loaded.sketch.dtype))
    return bench.folder(Plan(dict.fromkeys(linears, LayerSpec.parse(token))))


def test_a_shape_as_json_and_a_table_that_a_search_finds(run, tmp_path):
    out = tmp_path / "new" / "rows.json"
    asked = ("--shapes", "32x64", "--spec", "gptq-w4g16,rtn-w8g16", "--batch", "1,4")
    answer = run("bench", *asked, *SMALL, "--json", "--out", out)
    assert answer.code == 0
    data = json.loads(answer.out)
    assert json.loads(out.read_text(encoding="utf-8")) == data
    assert [(row["rows"], row["spec"]) for row in data["rows"]] == [
        (rows, spec) for rows in (1, 4) for spec in ("dense", "gptq-w4g16", "rtn-w8g16")
    ]
    for row in data["rows"]:
        assert row["median_ms"] > 0
        assert row["repeats"] == 3
        assert row["over_floor"] == pytest.approx(row["median_ms"] / row["floor_ms"])
    assert data["conditions"]["dtype"] == "float32"
    assert data["device"] == "local"
    again = run("bench", "--shapes", "16x16", "--spec", "rtn-w4g16", *SMALL)
    assert "16×16" in again.out
    assert "GB/s" in again.out
    from autocomp.cost.times import TimeTable

    shapes = {key.shape for key in TimeTable.load("local").times}
    assert shapes == {(32, 64), (16, 16)}
    run("bench", "--shapes", "16x16", "--spec", "rtn-w4g16", "--fresh", *SMALL)
    assert {key.shape for key in TimeTable.load("local").times} == {(16, 16)}


def test_calibrating_writes_a_device(run):
    answer = run("bench", "--calibrate", "--name", "mine", *SMALL)
    assert answer.code == 0
    assert "mine: " in answer.out
    devices = {row["name"]: row for row in json.loads(run("ls", "devices", "--json").out)}
    assert "best of" in devices["mine"]["source"]


def test_a_model_fills_what_a_limit_needs(run, tiny_llama_path):
    asked = ("--spec", "rtn-w4g16,rtn-w8g16", "--context", 16)
    answer = run("bench", tiny_llama_path, *asked, *SMALL, "--json")
    assert answer.code == 0
    (fitted,) = json.loads(answer.out)["overheads"]
    assert (fitted["architecture"], fitted["phase"]) == ("llama-64", "decode")
    assert fitted["runs"] == 9
    options = ("--set", "space.linear=[rtn-w4g16, rtn-w8g16]", "--set", "space.embedding=[dense]")
    cost = ("--times", "measured", "--cost-device", "local", "--context", 16)
    limits = ("--max-decode-ms", 1e6)
    found = run("check", tiny_llama_path, *options, *cost, *limits, "--json")
    assert found.code == 0
    assert json.loads(found.out)["estimate"]["costs"]["decode_ms"]["source"] == "measured"
    with made_of(tiny_llama_path, "rtn-w4g16") as folder:
        timed = run("bench", folder, "--context", 16, *SMALL, "--json")
        (model,) = json.loads(timed.out)["models"]
        assert model["source"] == "measured"
        assert min(model["median_ms"], model["predicted_ms"]) > 0
        shown = run("bench", folder, "--context", 12, "--batch", 2, "--prefill", *SMALL).out
    assert "decode at batch 2, context 12: " in shown
    assert "prefill at batch 2, context 12: " in shown
    assert "(mixed)" in shown
    missing = run("check", tiny_llama_path, *options, *cost, "--max-prefill-ms", 1e6)
    assert missing.code == 2
    assert "autocomp bench" in missing.err
    assert "--prefill" in missing.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to time"),
        (("tiny", "--shapes", "smollm2"), "either the model or --shapes"),
        (("--shapes", "4096"), "OUTxIN"),
        (("--shapes", "8x8", "--batch", "1,x"), "expected counts"),
    ],
)
def test_what_cannot_be_timed_exits_with_2(run, arguments, message):
    answer = run("bench", *arguments, *SMALL)
    assert answer.code == 2
    assert message in answer.err
