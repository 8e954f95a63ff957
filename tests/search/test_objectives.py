"""What a search minimises: KL on windows, error on examples, each with a ladder of its own."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autocomp.cli.main import app
from autocomp.config import StudyConfig, fingerprint, load_config
from autocomp.core.errors import ConfigError, NumericalError
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.data import load_corpus
from autocomp.evaluate.record import DataRead, Measurement
from autocomp.evaluate.summary import mean_metric
from autocomp.search.estimate import estimate
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.explain import show_trial
from autocomp.search.objectives import KlObjective, TaskErrorObjective, objective_of
from autocomp.search.run import finish_trial, run_search
from autocomp.search.study import Study
from autocomp.search.workbench import Workbench

TRIALS = 8
EXAMPLES = 90
SEARCH, HELDOUT = 60, 30


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PIQA's files: which of two endings goes on with what the tiny model was trained on."""
    text = "\n\n".join(load_corpus("pydoc").calibration)[:20_000]
    words, rng = text.split(), np.random.default_rng(0)
    rows, labels = [], []
    for index in range(EXAMPLES):
        start = index * (len(words) // EXAMPLES)
        goal, right = words[start : start + 6], words[start + 6 : start + 10]
        wrong = ["".join(rng.permutation(list(word))) for word in right]
        label = int(rng.integers(2))
        pair = (" ".join(right), " ".join(wrong))
        row = {"goal": " ".join(goal), "sol1": pair[label], "sol2": pair[1 - label]}
        rows.append(json.dumps(row))
        labels.append(str(label))
    folder = tmp_path_factory.mktemp("tasks") / "piqa"
    folder.mkdir()
    (folder / "valid.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "valid-labels.lst").write_text("\n".join(labels), encoding="utf-8")
    return folder.parent


def config(model: Path, data_dir: Path, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 512,
        "data.rungs": (128, 256),
        "data.heldout_tokens": 512,
        "objective.metric": "task_error",
        "objective.tasks": ("piqa",),
        "objective.data_dir": str(data_dir),
        "objective.rungs": (10, SEARCH),
        "objective.heldout_examples": HELDOUT,
        "budget.max_bytes": 45_000,
        "search.trials": TRIALS,
        "search.baselines": 2,
        "search.ladder": 1,
        "search.finalists": 2,
        "search.finish": "none",
    }
    return load_config(None, settings | changes)


def values(study_dir: Path) -> list[tuple]:
    return [
        (r.logical, r.digest, r.state, r.loss, r.unit_loss, r.origin)
        for r in Study.open_existing(study_dir).records()
    ]


@pytest.fixture(scope="module")
def searched(trained_llama_path, data_dir, tmp_path_factory):
    chosen = config(trained_llama_path, data_dir)
    study_dir = tmp_path_factory.mktemp("study")
    result = run_search(chosen, study_dir=study_dir, storage=None, progress=Silent())
    return chosen, study_dir, result


@pytest.fixture(scope="module")
def bench(trained_llama_path, data_dir):
    return Workbench(config(trained_llama_path, data_dir))


def test_trials_hold_the_error_of_each_example(searched):
    _, study_dir, _ = searched
    study = Study.open_existing(study_dir)
    assert study.optuna.metric_names == ["task_error", "weight_bytes"]
    records = study.records()
    assert len(records) == TRIALS
    complete = [record for record in records if record.state == "COMPLETE"]
    assert complete
    for record in complete:
        assert len(record.unit_loss) == SEARCH
        assert set(record.unit_loss) <= {0.0, 1.0}
        assert record.loss == pytest.approx(np.mean(record.unit_loss))
        trial = study.optuna.trials[record.number]
        assert trial.values == [record.loss, float(record.weight_bytes)]
        assert trial.user_attrs["task_error"] == record.loss
    best = {trial.number for trial in study.optuna.best_trials}
    assert best == {point.number for point in study.front().points}


def test_the_base_is_measured_once_and_is_the_fixed_part_of_the_correction(searched, bench):
    """It knows most endings; so the error that compression adds is what scores explain."""
    _, study_dir, result = searched
    study = Study.open_existing(study_dir)
    assert 0 < study.base_loss < 0.4
    base = Measurement.from_json(study.optuna.user_attrs["base"])
    assert base.data.units == SEARCH
    table = show_trial(study_dir, None, result.best.number)
    assert table.metric == "task_error"
    assert table.predicted_loss > study.base_loss
    assert f"predicted_{table.metric}" in table.to_json()


def test_every_measurement_has_its_record_and_tokens_are_summed(searched):
    _, study_dir, result = searched
    study = Study.open_existing(study_dir)
    records = [record for record in study.records() if record.loss is not None]
    for record in records:
        found = Measurement.from_json(record.measurement)
        metric = found.metrics["task_error"]
        spread = np.std(record.unit_loss, ddof=1) / np.sqrt(len(record.unit_loss))
        assert metric.value == record.loss
        assert metric.standard_error == pytest.approx(spread)
        assert (found.data.name, found.data.split) == ("piqa", "search")
        assert (found.data.units, found.data.tokens) == (len(record.unit_loss), record.tokens)
        assert found.floor_nats is None
    assert result.tokens["search"] == sum(record.tokens for record in records)
    text, tasks = (Measurement.from_json(data) for data in result.best.measurements)
    assert {"kl_nats", "perplexity", "top1_agreement"} <= set(text.metrics)
    assert text.efficiency.weight_bytes == result.best.weight_bytes
    assert (text.data.tokens, tasks.data.split) == (512, "heldout")
    finished = study.finished()
    assert result.tokens["finish"] == 512 * len(finished)
    assert result.tokens["calibration"] == 512
    assert result.tokens["heldout"] == len(finished) * (512 + tasks.data.tokens)
    assert result.tokens["reference"] > 512


def test_held_out_examples_decide_and_are_others(searched, bench):
    _, study_dir, result = searched
    objective = objective_of(bench)
    own, others = ({str(e.row) for e in part._examples} for part in (
        objective._search, objective._heldout
    ))  # fmt: skip
    assert (len(own), len(others)) == (SEARCH, HELDOUT)
    assert not own & others
    finished = Study.open_existing(study_dir).finished()
    assert len(finished) > 1
    assert result.best.heldout_loss == min(record.heldout_loss for record in finished)
    assert len(result.best.unit_loss) == HELDOUT
    assert result.best.heldout_loss == pytest.approx(np.mean(result.best.unit_loss))
    assert result.finalists[0]["trial"] == result.best.number
    assert result.finalists[0]["difference"] == 0
    assert result.curse.compared == sum(
        r.feasible for r in Study.open_existing(study_dir).records()
    )


def test_json_bears_the_name_of_the_metric(searched):
    _, _, result = searched
    data = json.loads(json.dumps(result.to_json()))
    assert data["metric"] == "task_error"
    assert data["best"]["heldout_task_error"] == result.best.heldout_loss
    assert data["best"]["heldout_kl_nats"] == result.best.heldout_kl_nats
    assert all("task_error" in row and "kl_nats" not in row for row in data["front"])
    assert all("task_error" in row for row in data["families"])
    assert "loss" not in json.dumps(sorted(data["best"])).replace("unit_loss", "")


def test_resuming_measures_nothing_and_longer_goes_on(searched, tmp_path):
    chosen, study_dir, result = searched
    before = values(study_dir)
    copy = tmp_path / "study"
    shutil.copytree(study_dir, copy)
    again = run_search(chosen, study_dir=copy, storage=None, progress=Silent())
    assert values(copy) == before
    assert again.tokens == result.tokens
    assert finish_trial(copy, None, again.best.number, Silent()) == again.best
    longer = chosen.model_copy(
        update={"search": chosen.search.model_copy(update={"trials": TRIALS + 2})}
    )
    run_search(longer, study_dir=copy, storage=None, progress=Silent())
    assert values(copy)[:TRIALS] == before
    fresh = tmp_path / "fresh"
    run_search(longer, study_dir=fresh, storage=None, progress=Silent())
    assert values(fresh) == values(copy), "interrupted or not, the same study"


def test_front_prints_the_metric(searched, capsys):
    _, study_dir, _ = searched
    with pytest.raises(SystemExit) as stop:
        app(["front", str(study_dir)])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "task_error" in out
    assert "1 − accuracy" in out
    assert "measured plans are tied" in out
    assert "tokens read: calibration 512" in out


def test_changed_examples_are_refused_wherever_they_lie(searched, data_dir, tmp_path):
    chosen, study_dir, _ = searched
    copy, moved = tmp_path / "study", tmp_path / "moved"
    shutil.copytree(study_dir, copy)
    shutil.copytree(data_dir, moved)

    def resume(place: Path) -> None:
        other = chosen.objective.model_copy(update={"data_dir": str(place)})
        changed = chosen.model_copy(update={"objective": other})
        run_search(changed, study_dir=copy, storage=None, progress=Silent())

    resume(moved)
    labels = moved / "piqa" / "valid-labels.lst"
    labels.write_text(labels.read_text()[::-1])
    with pytest.raises(ConfigError, match="task error digest"):
        resume(moved)


def test_an_unknown_task_is_refused_before_work(trained_llama_path, data_dir, tmp_path):
    wrong = config(trained_llama_path, data_dir, **{"objective.tasks": ("piqua",)})
    with pytest.raises(ConfigError, match="Did you mean 'piqa'"):
        run_search(wrong, study_dir=tmp_path / "s", storage=None, progress=Silent())
    assert not (tmp_path / "s").exists()


def test_parts_shrink_alike_where_examples_are_few(trained_llama_path, data_dir, bench):
    settings = {"objective.rungs": (16, 200), "objective.heldout_examples": 100}
    many = config(trained_llama_path, data_dir, **settings)
    found = TaskErrorObjective(SimpleNamespace(config=many, loaded=bench.loaded))
    assert found.ladder == (16, SEARCH)
    assert found._heldout.units == HELDOUT


def test_a_study_by_kl_reads_windows(bench):
    found = KlObjective(bench)
    assert found.ladder == (2, 4)
    dense = Plan({})
    outcome = evaluate_plan(found, bench, dense)
    assert outcome.complete
    assert outcome.tokens == outcome.measurement.data.tokens == 256
    assert outcome.measurement.metrics["kl_nats"].value == pytest.approx(0, abs=1e-4)
    assert outcome.measurement.floor_nats is not None
    assert outcome.measurement.data.digest == found.digest


class Made:
    """An objective of made-up losses: unit i has the loss i."""

    name, unit, digest, ladder = "made", "unit", "0", (2, 3, 6)
    floor_nats, reference_tokens = None, 0

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad

    def prepare(self) -> None:
        pass

    def metric(self, losses):
        return mean_metric(losses)

    def measure(self, bench, plan, start, stop):
        losses = [float("nan") if i == self.bad else float(i) for i in range(start, stop)]
        return losses, 10 * (stop - start)

    def read(self, units: int, tokens: int) -> DataRead:
        return DataRead("made", self.digest, units, tokens)

    def measure_heldout(self, model, progress):
        return None


def test_the_ladder_of_the_objective_is_climbed(bench):
    seen = []
    outcome = evaluate_plan(Made(), bench, Plan({}), lambda losses: bool(seen.append(len(losses))))
    assert seen == [2, 3], "nobody is asked at the top"
    assert outcome.unit_loss == (0, 1, 2, 3, 4, 5)
    assert (outcome.complete, outcome.tokens, outcome.loss) == (True, 60, 2.5)
    assert set(outcome.stages) == {"assemble", "rung 2 units", "rung 3 units", "rung 6 units"}
    stopped = evaluate_plan(Made(), bench, Plan({}), lambda losses: len(losses) == 3)
    assert (stopped.complete, stopped.tokens, stopped.loss) == (False, 30, 1.0)
    with pytest.raises(NumericalError, match="made of plan"):
        evaluate_plan(Made(bad=4), bench, Plan({}))


def test_the_fingerprint_holds_what_the_objective_reads(trained_llama_path, data_dir):
    found = fingerprint(config(trained_llama_path, data_dir))
    assert {key for key in found if key.startswith("objective.")} == {
        "objective.metric", "objective.tasks", "objective.rungs", "objective.heldout_examples",
    }  # fmt: skip


def test_the_estimate_counts_examples_and_not_the_text(trained_llama_path):
    minutes = []
    for rungs in ([8, 10**6], [8, 10**8]):  # a tiny model is fast, and minutes are rounded
        values = {
            "model": str(trained_llama_path),
            "budget.max_bytes": "45kB",
            "objective.metric": "task_error",
            "objective.tasks": ["piqa"],
            "objective.rungs": rungs,
        }
        minutes.append(estimate(load_config(None, values)).minutes)
    assert minutes[1]["one full evaluation"] > 10 * minutes[0]["one full evaluation"]
    assert minutes[0]["one full evaluation"] > 0
    assert minutes[1]["reference"] < 1
