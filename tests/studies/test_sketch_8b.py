"""The study of an 8B model's bookkeeping, on few trials."""

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "sketch-8b" / "measure.py"


def test_a_short_search_is_counted_whole(tmp_path, capsys):
    """The stages are parts of the whole; the model has 224 linears, 64 sub-blocks and two ends.

    The study's memory is told apart from what imports take: the sketch, the tables of some 2,000
    options and the journal are tens of megabytes.
    """
    spec = importlib.util.spec_from_file_location("sketch_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path / "new" / "sketch.json"
    module.main(["--trials", "12", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["trials"] == 12
    assert found["size"]["linears"] == 224
    assert found["size"]["options_a_linear"] == 8
    assert found["size"]["decisions"] == 224 + 64 + 2
    assert 0 < sum(found["stages"].values()) <= found["seconds"] + 0.1
    assert found["best_over_first_uniform"] < 1
    assert found["peak_rss_bytes"] - found["rss_before_bytes"] < 300e6
    assert json.loads(capsys.readouterr().out) == found
