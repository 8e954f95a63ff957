"""The sampler comparison on the replay of a toy study."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocomp.core.registry import SAMPLERS
from autocomp.search.replay import Replay
from autocomp.testing.samplers import UNITS, ToyModel, run_sampler

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "sampler-replay" / "measure.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sampler_replay_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_plot_and_record(script, tmp_path, monkeypatch, capsys):
    """The default finds better plans than random within 20 trials, on average over 12 seeds."""
    model = ToyModel(blocks=2)
    told = run_sampler(SAMPLERS["auto"], model, 24)
    study = SimpleNamespace(fingerprint={"model": "/somewhere/toy"}, metric="kl_nats")
    monkeypatch.setattr(script.Study, "open_existing", lambda source: study)
    monkeypatch.setattr(
        script.Replay, "of", lambda study, seed: Replay(model.contexts, told, (2, UNITS), seed)
    )
    out = tmp_path / "new" / "found.json"
    settings = ["--samplers", "random", "auto", "--seeds", "12", "--trials", "20"]
    script.main(["toy", *settings, "--at", "5", "20", "99", "--out", str(out)])
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["settings"]["study"] == {"model": "toy"}
    assert record["settings"]["measured_plans"] == 24
    assert settings[0] in record["settings"]["command"]
    assert [row["sampler"] for row in record["rows"]] == ["auto", "random"]
    reference, random = ({c["trials"]: c for c in row["at"]} for row in record["rows"])
    assert set(reference) == {5, 20}
    assert (reference[20]["ratio"], reference[20]["high"]) == (1.0, 1.0)
    assert random[20]["low"] > 1.5, "the interval of the ratio to the default is above 1"
    assert random[20]["ratio"] == pytest.approx(random[20]["loss"] / reference[20]["loss"])
    assert reference[20]["loss"] <= reference[5]["loss"]
    assert len(record["searches"]) == 24
    assert {"optuna", "numpy", "python"} <= set(record["versions"])
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2


def test_a_search_that_ended_early_keeps_its_best(script):
    assert script.best_at({"best": [3.0, 2.0]}, 1) == 3.0
    assert script.best_at({"best": [3.0, 2.0]}, 60) == 2.0


def test_one_seed_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["toy", "--seeds", "1"])
    assert "raise --seeds" in capsys.readouterr().err
