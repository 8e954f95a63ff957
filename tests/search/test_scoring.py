"""The pass that scores, its cache, and what a study makes of a table."""

import json
from dataclasses import replace

import pytest

from autocomp.config import load_config
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.core.registry import SCORES
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.search.clock import Clock
from autocomp.search.correction import SPREAD, UNKNOWN_UNIT
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.objectives import KlObjective
from autocomp.search.scores.table import ScoreTable
from autocomp.search.scoring import score_options
from autocomp.search.setup import Setup
from autocomp.search.stored import read_scores, scores_path, search_context, write_json
from autocomp.search.workbench import Workbench

SETTINGS = {
    "data.window": 64,
    "data.calibration_tokens": 640,
    "data.rungs": (128, 256),
    "data.heldout_tokens": 64,
    "space.linear": ["rtn-w2g16", "rtn-w4g16"],
    "space.embedding": ["rtn-w4g16"],
    "space.cache": ["kivi-k2v2g4r8"],
}


@pytest.fixture(scope="module")
def setup(trained_llama_path):
    return Setup.of(load_config(None, {"model": str(trained_llama_path), **SETTINGS}))


@pytest.fixture(scope="module")
def bench(setup):
    return Workbench(setup.config)


def scored(bench, setup, name, objective=None):
    return score_options(bench, setup.site_lists, Silent(), Clock(), name, objective)


@pytest.fixture(scope="module")
def measured(bench, setup):
    return scored(bench, setup, "measured", KlObjective(bench))


def test_measured_equals_evaluating_the_plan_on_the_first_rung(bench, setup, measured):
    objective = KlObjective(bench)
    layers = {site.name: DENSE for site in bench.sketch.sites}

    def loss(changes):
        plan = Plan({**layers, **changes})
        return evaluate_plan(objective, bench, plan, stop=lambda _: True)

    dense, counted = loss({}), 128
    for site, specs in setup.site_lists.items():
        for spec in specs:
            outcome = loss({site: spec})
            assert len(outcome.unit_loss) == 2
            expected = pytest.approx(max(0.0, outcome.loss - dense.loss), abs=1e-6)
            counted += 0 if spec == DENSE else outcome.tokens
            if bench.sketch[site].kind == "subblock":
                if spec != DENSE:
                    assert measured.drop[site] == expected
            else:
                assert measured.options[site][spec.token()] == expected
    assert measured.tokens == counted
    assert not any(bench.sketch[site].kind == "subblock" for site in measured.options)


def test_measured_needs_an_objective(bench, setup):
    with pytest.raises(ConfigError, match="objective"):
        scored(bench, setup, "measured")


def test_measured_keeps_the_pairs_of_the_kronecker_score(bench, setup, measured):
    assert measured.pairs == scored(bench, setup, "kronecker").pairs


def test_pairs_hold_the_kronecker_score_on_their_diagonal(bench, setup):
    table = scored(bench, setup, "kronecker")
    for site, rows in table.pairs.items():
        assert {token: row[token] for token, row in rows.items()} == table.options[site]
    other = scored(bench, setup, "output-error")
    for site, rows in other.pairs.items():
        for token, row in rows.items():
            assert row == pytest.approx(table.pairs[site][token], rel=1e-6)


def test_scores_are_read_from_the_cache_by_name_and_version(bench, setup, monkeypatch):
    first = scored(bench, setup, "weight-error")

    def forbidden(*_):
        raise AssertionError("scored again")

    with monkeypatch.context() as patch:
        patch.setattr(bench, "stream", forbidden)
        assert scored(bench, setup, "weight-error") == first
        with pytest.raises(AssertionError, match="scored again"):
            scored(bench, setup, "autoquantize")
        patch.setattr(SCORES["weight-error"], "version", 2)
        with pytest.raises(AssertionError, match="scored again"):
            scored(bench, setup, "weight-error")


def test_an_unknown_score_is_refused(bench, setup):
    with pytest.raises(ConfigError, match="Did you mean 'kronecker'"):
        scored(bench, setup, "kroneker")
    with pytest.raises(ConfigError, match="Did you mean 'token'"):
        load_config(None, {"model": "m", "search.score": "tokens"})


def test_a_score_that_is_no_kl_is_corrected_by_any_factor(bench, setup):
    kl, other = (scored(bench, setup, name) for name in ("kronecker", "autoquantize"))
    assert search_context(setup, kl).common == SPREAD["common"]
    assert search_context(setup, other).common == UNKNOWN_UNIT
    tasks = replace(
        setup,
        config=setup.config.model_copy(
            update={
                "objective": setup.config.objective.model_copy(update={"metric": "task_error"})
            }
        ),
    )
    assert search_context(tasks, kl).common == UNKNOWN_UNIT


def test_a_study_reads_its_table_and_one_of_an_earlier_version(bench, setup, tmp_path):
    table = scored(bench, setup, "gradient")
    path = scores_path(tmp_path, "base")
    write_json(path, table.to_json())
    assert read_scores(tmp_path, "base") == table
    old = {"options": table.options, "drop": table.drop}
    path.write_text(json.dumps(old))
    assert read_scores(tmp_path, "base") == ScoreTable(**old)
    path.write_text(json.dumps({"options": {}}))
    with pytest.raises(ConfigError, match="damaged"):
        read_scores(tmp_path, "base")


def test_options_that_round_the_input_have_no_pairs(bench):
    name = "model.layers.0.mlp.down_proj"
    specs = tuple(map(LayerSpec.parse, ("rtn-w8-sym", "rtn-w8-sym+absmax-a8")))
    table = score_options(bench, {name: specs}, Silent(), Clock())
    assert list(table.options[name]) == [spec.token() for spec in specs]
    assert list(table.pairs[name]) == ["rtn-w8-sym"]
