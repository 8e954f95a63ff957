"""The store-building study on a tiny model: every linear at every level, and what it writes."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "store-building" / "measure.py"


@pytest.mark.parametrize("how", [[], ["--apart"]])
def test_every_linear_is_timed_at_every_level(how, tmp_path, trained_llama_path, capsys):
    spec = importlib.util.spec_from_file_location("store_building_study", SCRIPT)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    out = tmp_path / "new" / "store.json"
    levels = ["gptq-w3g8", "rtn-w4"]
    sizes = ["--blocks", "1", "--tokens", "64", "--levels", *levels]
    study.main(["--model", str(trained_llama_path), "--out", str(out), *sizes, *how])
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["linears"] == 7
    assert {row["linears"]: row["compressed"] for row in record["rows"]} == {
        "q, k, v": 6,
        "o": 2,
        "gate, up": 4,
        "down": 2,
    }
    assert 0 < record["seconds"] <= record["seconds_of_all_linears"]
    assert "7 linears took" in capsys.readouterr().out
