"""A search by another loss and another cost, under two limits, end to end."""

import math
from pathlib import Path

import numpy as np
import pytest

from autocomp.config import StudyConfig, fingerprint, load_config
from autocomp.core.cost import DECODE_MS, FLOPS, PEAK_MEMORY_BYTES, WEIGHT_BYTES
from autocomp.core.errors import ConfigError
from autocomp.core.progress import Silent
from autocomp.evaluate.perplexity import perplexity
from autocomp.layers.native import load
from autocomp.search.explain import show_trial
from autocomp.search.objectives import PerplexityObjective, objective_of
from autocomp.search.run import Search, run_search
from autocomp.search.study import Study

TRIALS = 9
MEMORY = 580_000


def config(model: Path, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 512,
        "data.rungs": (128, 256),
        "data.heldout_tokens": 256,
        "objective.metric": "perplexity",
        "objective.cost": "decode_ms",
        "space.cache": ("kivi-k4v4g16r16", "dense"),
        "budget.max_bytes": 45_000,
        "budget.max_memory": MEMORY,
        "budget.context": 512,
        "budget.device": "a100",
        "search.trials": TRIALS,
        "search.baselines": 2,
        "search.ladder": 2,
        "search.finalists": 1,
        "search.finish": "none",
    }
    return load_config(None, settings | changes)


@pytest.fixture(scope="module")
def searched(trained_llama_path, tmp_path_factory):
    study_dir = tmp_path_factory.mktemp("study")
    chosen = config(trained_llama_path)
    result = run_search(chosen, study_dir=study_dir, storage=None, progress=Silent())
    return chosen, study_dir, result


def test_trials_hold_perplexity_and_milliseconds(searched):
    chosen, study_dir, _ = searched
    study = Study.open_existing(study_dir)
    assert study.optuna.metric_names == ["perplexity", DECODE_MS]
    setup = Search(chosen, study_dir, None, Silent()).setup
    values = {t.number: t.values for t in study.optuna.trials}
    full = [record for record in study.records() if record.feasible]
    assert full
    for record in full:
        assert len(record.unit_loss) == 4
        assert record.loss == pytest.approx(math.exp(np.mean(record.unit_loss)))
        costs = setup.costs(record.plan)
        assert record.costs == costs
        assert set(costs) == {WEIGHT_BYTES, PEAK_MEMORY_BYTES, DECODE_MS}
        assert values[record.number] == [record.loss, costs[DECODE_MS]]
        assert costs[WEIGHT_BYTES] <= 45_000
        assert costs[PEAK_MEMORY_BYTES] <= MEMORY
        assert record.measurement["metrics"]["perplexity"]["value"] == record.loss
        assert set(record.constraints) == {WEIGHT_BYTES, PEAK_MEMORY_BYTES, "fidelity"}
        with pytest.raises(ConfigError, match=r"no flops.*decode_ms"):
            record.cost_of(FLOPS)


def test_the_front_is_that_of_plain_optuna(searched):
    _, study_dir, _ = searched
    study = Study.open_existing(study_dir)
    best = sorted(trial.number for trial in study.optuna.best_trials)
    assert sorted(point.number for point in study.front().points) == best
    sizes = [point.cost for point in study.front(WEIGHT_BYTES).points]
    assert all(size <= 45_000 for size in sizes)
    three = study.front(DECODE_MS, WEIGHT_BYTES, PEAK_MEMORY_BYTES)
    assert set(best) <= {point.number for point in three.points}


def test_the_base_has_the_perplexity_of_its_text_and_is_what_scores_add_to(searched, tmp_path):
    chosen, study_dir, _ = searched
    search = Search(chosen, study_dir, None, Silent())
    bench = search.bench
    objective = objective_of(bench)
    assert isinstance(objective, PerplexityObjective)
    own = perplexity(bench.loaded.model, bench.search_windows[:4], batch_size=2)
    base = search.study.base_loss
    assert base == pytest.approx(math.exp(np.mean(own)), rel=1e-3)
    assert search.setup.problem(None).fixed_score == base
    assert search.contexts()[0].problem.fixed_score == base


def test_what_is_finished_has_the_perplexity_of_held_out_text(searched):
    chosen, study_dir, result = searched
    best = result.best
    assert best.metric == "perplexity"
    assert best.heldout_loss == best.perplexity
    assert best.heldout_loss == pytest.approx(math.exp(np.mean(best.unit_loss)))
    bench = Search(chosen, study_dir, None, Silent()).bench
    text = bench.windows("heldout", 256).input_ids
    model = load(study_dir / best.artefact, dtype=bench.dtype)
    again = perplexity(model, text, batch_size=2)
    assert best.unit_loss == pytest.approx(again, rel=1e-3)
    assert result.finalists[0]["heldout_perplexity"] == best.heldout_loss


def test_json_names_the_cost_and_where_it_comes_from(searched):
    _, _, result = searched
    data = result.to_json()
    assert (data["metric"], data["cost"]) == ("perplexity", DECODE_MS)
    assert data["cost_sources"] == {
        WEIGHT_BYTES: "exact", PEAK_MEMORY_BYTES: "exact", DECODE_MS: "modelled",
    }  # fmt: skip
    row = data["front"][0]
    assert row[DECODE_MS] > 0
    assert row["perplexity"] > 1
    assert {WEIGHT_BYTES, PEAK_MEMORY_BYTES, "heldout_perplexity", "heldout_kl_nats"} <= set(row)
    grown = data["hypervolume"]
    assert set(grown["reference"]) == {"perplexity", DECODE_MS}
    assert len(grown["by_trial"]) == TRIALS
    assert grown["by_trial"][-1]["hypervolume"] > 0


def test_a_trial_is_explained_in_bytes_whatever_is_minimised(searched):
    _, study_dir, result = searched
    table = show_trial(study_dir, None, result.best.number)
    rows = {row.site: row for row in table.rows}
    down = rows["model.layers.0.mlp.down_proj"]
    assert down.token == "(bypassed)" or 0 < down.bytes < 64 * 128 * 2.2
    assert all(abs(other.delta_bytes) < 64 * 128 * 2.2 for other in down.alternatives)
    cache = rows["model.layers.0.self_attn.cache"]
    dense = 2 * 512 * 2 * 16 * 2  # keys and values: tokens, heads, width, bytes
    if cache.token == "dense":
        assert cache.bytes == dense
        assert all(other.delta_bytes < -dense / 3 for other in cache.alternatives)
    else:
        assert cache.bytes < dense * 2 / 3


def test_running_again_resumes_and_another_cost_is_refused(searched):
    chosen, study_dir, _ = searched
    before = len(Study.open_existing(study_dir).records())
    run_search(chosen, study_dir=study_dir, storage=None, progress=Silent())
    assert len(Study.open_existing(study_dir).records()) == before
    for changes in ({"objective.cost": "flops"}, {"budget.device": "h100"}):
        with pytest.raises(ConfigError, match="made with other settings"):
            run_search(config(Path(chosen.model), **changes), study_dir=study_dir,
                       storage=None, progress=Silent())  # fmt: skip


def test_a_study_of_an_earlier_version_stays_open(trained_llama_path, tmp_path):
    """Settings that it did not have are no part of its fingerprint, nor costs of its trials."""
    plain = {"objective.metric": "kl_nats", "objective.cost": "weight_bytes",
             "budget.max_memory": None, "budget.device": "h100"}  # fmt: skip
    found = fingerprint(config(trained_llama_path, **plain))
    assert {key for key in found if key.startswith(("budget.", "objective."))} == {
        "budget.max_bytes", "budget.max_memory", "budget.context", "budget.batch",
        "objective.metric",
    }  # fmt: skip
    study = Study.open(None, tmp_path, fingerprint=found)
    assert study.optuna.metric_names == ["kl_nats", WEIGHT_BYTES]
    assert (study.metric, study.cost) == ("kl_nats", WEIGHT_BYTES)
