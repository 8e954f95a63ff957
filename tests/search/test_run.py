"""The main job on a tiny trained model: search, front, finish, resume, kill."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch

from autocomp.config import StudyConfig, load_config
from autocomp.core.errors import ConfigError, InfeasibleError, PlanError
from autocomp.core.progress import Silent
from autocomp.cost.bytes import weight_bytes
from autocomp.env import cache_dir
from autocomp.layers.native import load
from autocomp.search.explain import show_trial
from autocomp.search.finish import recompress
from autocomp.search.run import Search, compress_uniform, finish_trial, run_search
from autocomp.search.study import Study

TRIALS = 14


def config(model: Path, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 1024,
        "data.rungs": (128, 256, 1024),
        "data.heldout_tokens": 1024,
        "budget.max_bytes": 45_000,
        "search.trials": TRIALS,
        "search.finalists": 2,
    }
    return load_config(None, settings | changes)


def values(study_dir: Path) -> list[tuple]:
    """Return what must not depend on interruptions: plans, values and states in order."""
    return [
        (r.logical, r.digest, r.state, r.loss, r.unit_loss, r.origin)
        for r in Study.open_existing(study_dir).records()
    ]


@pytest.fixture(scope="module")
def searched(trained_llama_path, tmp_path_factory):
    """An uninterrupted search."""
    study_dir = tmp_path_factory.mktemp("study")
    chosen = config(trained_llama_path)
    result = run_search(chosen, study_dir=study_dir, storage=None, progress=Silent())
    return chosen, study_dir, result


def test_the_best_plan_holds_the_budget_and_beats_the_uniform_one(searched):
    chosen, _, result = searched
    assert result.best.weight_bytes <= chosen.budget.max_bytes
    assert result.best_uniform.weight_bytes <= chosen.budget.max_bytes
    assert result.best.heldout_kl_nats < result.best_uniform.heldout_kl_nats


def test_every_family_is_measured_to_the_top(searched):
    _, study_dir, result = searched
    complete = [r for r in Study.open_existing(study_dir).records() if r.state == "COMPLETE"]
    used = {part for record in complete for part in record.family.split("+")}
    assert {"quantized", "sparse", "low-rank", "bypassed"} <= used
    assert {row["family"] for row in result.families}


def test_front_equals_the_best_trials_of_plain_optuna(searched):
    _, study_dir, result = searched
    backend = optuna.storages.journal.JournalFileBackend(str(study_dir / "journal.log"))
    study = optuna.load_study(
        study_name="autocomp", storage=optuna.storages.JournalStorage(backend)
    )
    assert {trial.number for trial in study.best_trials} == {row["trial"] for row in result.front}


def test_predicted_bytes_equal_the_file_and_the_file_is_what_was_measured(searched):
    chosen, study_dir, result = searched
    record = next(
        r for r in Study.open_existing(study_dir).records() if r.number == result.best.number
    )
    search = Search(chosen, study_dir, None, Silent())
    folder = study_dir / result.best.artefact
    assert (folder / "model.safetensors").stat().st_size == weight_bytes(
        search.setup.sketch, record.plan
    )
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        once = load(folder)(ids).logits
        again = load(folder)(ids).logits
    assert torch.equal(once, again)
    assert result.best.heldout_kl_nats == pytest.approx(
        finish_trial(study_dir, None, record.number, Silent()).heldout_kl_nats
    )


def test_finishing_twice_gives_the_same_bytes(searched):
    chosen, study_dir, result = searched
    search = Search(chosen, study_dir, None, Silent())
    plan = search._record(result.best.number).plan
    first = recompress(search.bench, plan, Silent())
    second = recompress(search.bench, plan, Silent())
    for site, weight in first.items():
        for name, tensor in weight.tensors.items():
            assert torch.equal(tensor, second[site].tensors[name]), (site, name)


def test_the_body_keeps_its_rotary_frequencies_in_fp32(searched):
    chosen, study_dir, _ = searched
    bench = Search(chosen, study_dir, None, Silent()).bench
    frequencies = [b for name, b in bench.model.named_buffers() if "inv_freq" in name]
    assert frequencies
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)


def test_show_explains_every_site(searched):
    _, study_dir, result = searched
    table = show_trial(study_dir, None, result.best.number)
    assert table.weight_bytes == result.best.weight_bytes
    tokens = {row.site: row.token for row in table.rows}
    caches = {name for name in table.record.plan.layers if name.endswith(".cache")}
    assert set(tokens) == set(table.record.plan.layers) - caches, "a byte budget leaves caches"
    assert all(
        alternative.delta_bytes != 0 or alternative.token
        for row in table.rows
        for alternative in row.alternatives
    )
    assert table.predicted_loss == pytest.approx(table.record.loss, rel=0.5)


def test_running_again_measures_nothing_and_more_trials_extend(searched):
    chosen, study_dir, _ = searched
    before = values(study_dir)
    run_search(chosen, study_dir=study_dir, storage=None, progress=Silent())
    assert values(study_dir) == before
    longer = chosen.model_copy(
        update={"search": chosen.search.model_copy(update={"trials": TRIALS + 2})}
    )
    run_search(longer, study_dir=study_dir, storage=None, progress=Silent())
    assert values(study_dir)[:TRIALS] == before
    assert len(values(study_dir)) == TRIALS + 2


def test_the_same_seed_gives_the_same_study(searched, tmp_path):
    chosen, study_dir, _ = searched
    run_search(chosen, study_dir=tmp_path, storage=None, progress=Silent())
    assert values(tmp_path) == values(study_dir)[:TRIALS]


def test_a_damaged_store_entry_is_noticed_and_rebuilt(searched, caplog):
    chosen, study_dir, result = searched
    search = Search(chosen, study_dir, None, Silent())
    plan = search._record(result.best.number).plan
    linears = [s.name for s in search.setup.sketch.sites if s.kind == "linear"]
    site = next(name for name in linears if plan[name].token() != "dense")
    key = search.bench.key(site, plan[site])
    path = search.bench.store.path(key)
    stored = search.bench.compressed(site, plan[site]).tensors
    whole = {name: tensor.clone() for name, tensor in stored.items()}
    path.write_bytes(path.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        rebuilt = search.bench.compressed(site, plan[site])
    assert "damaged" in caplog.text
    for name, tensor in whole.items():
        assert torch.equal(tensor, rebuilt.tensors[name])
    assert search.bench.store.get(key) is not None


def test_a_budget_below_the_smallest_plan_is_refused_before_work(trained_llama_path, tmp_path):
    small = config(trained_llama_path, **{"budget.max_bytes": 1000})
    with pytest.raises(InfeasibleError, match=r"smallest plan .* needs .* bytes"):
        run_search(small, study_dir=tmp_path / "s", storage=None, progress=Silent())
    assert not (tmp_path / "s").exists()


def test_compressing_with_a_spec_that_does_not_fit_is_refused_before_work(
    trained_llama_path, tmp_path
):
    with pytest.raises(PlanError, match=r"gptq-w4g48.*does not fit.*layers\.0"):
        compress_uniform(
            config(trained_llama_path),
            linear="gptq-w4g48",
            embedding=None,
            out=tmp_path / "q",
            progress=Silent(),
        )
    assert not (tmp_path / "q").exists()


def test_a_memory_budget_counts_the_cache(trained_llama_path, tmp_path):
    limits = {"budget.max_bytes": None, "budget.max_memory": 400_000, "budget.context": 256}
    chosen = config(trained_llama_path, **limits)
    search = Search(chosen, tmp_path, None, Silent())
    search.run_trials(search.contexts())
    feasible = [record for record in search.study.records() if record.feasible]
    assert feasible
    for record in feasible:
        costs = search.setup.costs(record.plan)
        assert costs["peak_memory_bytes"] <= 400_000


def test_another_model_at_the_same_place_is_refused_with_a_diff(searched, tiny_llama_path):
    _, study_dir, _ = searched
    with pytest.raises(ConfigError, match=r"model: stored .*trained.*, now .*tiny"):
        run_search(config(tiny_llama_path), study_dir=study_dir, storage=None, progress=Silent())


SCRIPT = """
import sys, json
from pathlib import Path
from autocomp.config import StudyConfig
from autocomp.core.progress import Silent
from autocomp.search.run import run_search
config = StudyConfig.model_validate_json(Path(sys.argv[1]).read_text())
run_search(config, study_dir=Path(sys.argv[2]), storage=None, progress=Silent())
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_never_interrupted(searched, tmp_path):
    """SIGKILL five times while the journal grows, then let it end."""
    chosen, study_dir, result = searched
    settings = tmp_path / "config.json"
    settings.write_text(json.dumps(chosen.model_dump(mode="json")))
    target = tmp_path / "study"
    journal = target / "journal.log"
    environment = os.environ | {"AUTOCOMP_CACHE": str(cache_dir())}
    rng = random.Random(0)
    kills = 0
    while kills < 5:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SCRIPT, str(settings), str(target)], env=environment
        )
        size = journal.stat().st_size if journal.exists() else 0
        goal = size + rng.randint(1, 9000)
        while process.poll() is None:
            if journal.exists() and journal.stat().st_size >= goal:
                time.sleep(rng.random() * 0.05)
                process.send_signal(signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.002)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    final = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(settings), str(target)], env=environment
    )
    assert final.returncode == 0
    assert values(target) == values(study_dir)[:TRIALS]
    best = Study.open_existing(target).best_finished()
    assert best.heldout_kl_nats == pytest.approx(result.best.heldout_kl_nats, rel=1e-6)
