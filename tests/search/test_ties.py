"""``space.tied``: q/k/v and gate/up share one decision, in a whole search."""

import json
from pathlib import Path

import numpy as np
import pytest

from autocomp.config import StudyConfig, fingerprint, load_config
from autocomp.core.errors import ConfigError
from autocomp.core.progress import Silent
from autocomp.core.spec import DENSE
from autocomp.cost.bytes import weight_bytes
from autocomp.env import cache_dir
from autocomp.search.explain import show_trial
from autocomp.search.run import Search, run_search
from autocomp.search.setup import Setup
from autocomp.testing.spaces import check_assignment, check_lists, random_assignment

ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
QKV = tuple(f"{ATTENTION}.{role}" for role in ("q_proj", "k_proj", "v_proj"))
GATE_UP = (f"{MLP}.gate_proj", f"{MLP}.up_proj")


def config(model: Path, *, tied: bool = True, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 512,
        "data.rungs": (512,),
        "data.heldout_tokens": 512,
        "budget.max_bytes": 45_000,
        "space.tied": tied,
        "search.trials": 8,
        "search.baselines": 2,
        "search.finalists": 1,
        "search.finish": "none",
    }
    return load_config(None, settings | changes)


@pytest.fixture(scope="module")
def searched(trained_llama_path, tmp_path_factory):
    study_dir = tmp_path_factory.mktemp("tied")
    chosen = config(trained_llama_path)
    return chosen, study_dir, run_search(
        chosen, study_dir=study_dir, storage=None, progress=Silent()
    )  # fmt: skip


def test_the_space_has_one_parameter_a_group_and_keeps_its_laws(trained_llama_path):
    setup = Setup.of(config(trained_llama_path))
    free = Setup.of(config(trained_llama_path, tied=False))
    dropped = {*QKV[1:], GATE_UP[1]}
    assert not dropped & set(setup.weight_groups)
    assert dropped < set(free.weight_groups)
    assert len(free.weight_groups) - len(setup.weight_groups) == 2 * len(dropped)
    assert set(setup.site_lists) == set(free.site_lists)
    weights = {name: specs for name, specs in setup.lists.items() if not name.endswith(".cache")}
    check_lists(setup.sketch, weights)
    for seed in range(10):
        check_assignment(setup.space, random_assignment(setup.space, seed))


@pytest.mark.parametrize(
    "budget", [{}, {"budget.max_bytes": None, "budget.max_memory": "1MB", "budget.context": 256}]
)
def test_a_tied_plan_is_priced_site_by_site(trained_llama_path, budget):
    """What the knapsack counts is never below what a plan takes, and above by headers alone."""
    setup = Setup.of(config(trained_llama_path, **budget))
    problem = setup.problem(None)
    for bypass in problem.bypasses:
        rows = [problem.groups[row].name for row in bypass.members]
        assert len(rows) == len(set(rows)) == 2 + (bypass.name.endswith("attn") and bool(budget))
    for seed in range(20):
        params = setup.space.encode(setup.space.decode(random_assignment(setup.space, seed)))
        choice = np.array([params[group.name] for group in problem.groups])
        bypassed = np.array([params[one.name] == 1 for one in problem.bypasses])
        counted = problem.solution(choice, bypassed).cost
        spent = setup.spent(setup.space.decode(params))
        assert spent <= counted <= spent + 2_000


def test_every_plan_of_a_search_shares_its_decisions(searched):
    chosen, study_dir, result = searched
    search = Search(chosen, study_dir, None, Silent())
    records = search.study.records()
    assert len(records) == 8
    for record in records:
        for sites, owner in ((QKV, ATTENTION), (GATE_UP, MLP)):
            specs = {record.plan[site] for site in sites}
            assert len(specs) == 1
            assert record.plan[owner] == DENSE or specs == {DENSE}
        assert record.weight_bytes == weight_bytes(search.setup.sketch, record.plan)
    assert result.best.weight_bytes <= 45_000


def test_the_scores_are_those_of_the_free_space(searched, tmp_path):
    """The same options of the same sites: the store and the score table are found, not made."""
    chosen, study_dir, _ = searched
    free = chosen.model_copy(update={"space": chosen.space.model_copy(update={"tied": False})})
    tables = set(cache_dir().glob("scores/*.json"))
    Search(free, tmp_path, None, Silent()).contexts()
    assert set(cache_dir().glob("scores/*.json")) == tables
    ours, theirs = (json.loads((d / "scores.json").read_text()) for d in (study_dir, tmp_path))
    assert ours == theirs


def test_a_group_is_explained_as_one(searched):
    _, study_dir, result = searched
    table = show_trial(study_dir, None, result.best.number)
    rows = {row.site: row for row in table.rows}
    assert set(rows) >= {QKV[0], GATE_UP[0]}
    assert not set(rows) & {*QKV[1:], GATE_UP[1]}
    assert sum(row.bytes for row in table.rows) <= table.weight_bytes


def test_a_tied_study_is_another_study(searched, trained_llama_path):
    chosen, study_dir, _ = searched
    assert fingerprint(chosen)["space.tied"] is True
    with pytest.raises(ConfigError, match=r"space\.tied: stored True, now None"):
        run_search(
            config(trained_llama_path, tied=False),
            study_dir=study_dir,
            storage=None,
            progress=Silent(),
        )
