"""Variants on a tiny trained model: prepared, searched, finished, resumed."""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch

import autocomp
from autocomp.cli.front import best_bits
from autocomp.cli.studies import open_view
from autocomp.config import StudyConfig, load_config
from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.progress import Silent
from autocomp.cost.bytes import weight_bytes
from autocomp.layers.native import WEIGHTS_FILE, native_sketch
from autocomp.models import sketch_of
from autocomp.report.bits import bits_map
from autocomp.search import edits
from autocomp.search.edits import edit_path, edit_tensors, prepared_edit
from autocomp.search.estimate import estimate
from autocomp.search.evaluation import evaluate_plan
from autocomp.search.explain import show_trial
from autocomp.search.objectives import KlObjective
from autocomp.search.run import Search, finish_trial, run_search
from autocomp.search.setup import Setup
from autocomp.search.stored import Prepared, stored_setup
from autocomp.search.study import Study
from autocomp.search.variants import VariantBench, dense_plan
from autocomp.search.workbench import Workbench

TOKENS = ("flap-p75", "wandawidth-p50")
TRIALS = 22


def config(model: Path, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 1024,
        "data.rungs": (128, 256, 1024),
        "data.heldout_tokens": 1024,
        "budget.max_bytes": 45_000,
        "space.variants": TOKENS,
        "search.baselines": 3,
        "search.trials": TRIALS,
        "search.finalists": 2,
    }
    return load_config(None, settings | changes)


@pytest.fixture(scope="module")
def base(trained_llama_path):
    return Workbench(config(trained_llama_path))


@pytest.fixture(scope="module")
def bench(base):
    return VariantBench(base, "flap-p75")


@pytest.fixture(scope="module")
def searched(trained_llama_path, tmp_path_factory):
    study_dir = tmp_path_factory.mktemp("study")
    chosen = config(trained_llama_path)
    result = run_search(chosen, study_dir=study_dir, storage=None, progress=Silent())
    return chosen, study_dir, result


def test_an_edit_is_made_once_and_a_damaged_one_again(base, monkeypatch, caplog):
    first = edit_tensors(prepared_edit(base, "flap-p75"))
    assert any(name.startswith("bias/") for name in first)

    def forbidden(*_: object) -> None:
        raise AssertionError("calibrated again")

    with monkeypatch.context() as patch:
        patch.setattr(edits, "output_statistics", forbidden)
        again = edit_tensors(prepared_edit(base, "flap-p75"))
        again = {name: tensor.clone() for name, tensor in again.items()}  # not of the file
    path = edit_path(base, "flap-p75")
    assert edit_path(base, "flap-p80") != path
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    with caplog.at_level(logging.WARNING):
        rebuilt = edit_tensors(prepared_edit(base, "flap-p75"))
    assert "damaged" in caplog.text
    for other in (again, rebuilt):
        assert other.keys() == first.keys()
        assert all(torch.equal(other[name], first[name]) for name in first)


def test_cutting_leaves_the_base_alone_and_shares_what_is_not_cut(base, bench):
    attention, mlp = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    originals = base.loaded.model.get_submodule, bench.loaded.model.get_submodule
    assert originals[0](attention).weight is originals[1](attention).weight
    assert originals[0](mlp).weight.shape == (64, 128)
    assert bench.sketch[mlp].shape[1] < 128
    assert torch.equal(base.weight(mlp), Workbench(base.config).weight(mlp))
    sizes = [weight_bytes(b.sketch, dense_plan(b)) for b in (base, bench)]
    assert sizes[1] < sizes[0]


def test_what_a_variant_costs_is_measured_against_the_base(base, bench):
    assert bench.search_meter is base.search_meter
    assert bench.heldout_meter is base.heldout_meter
    kl = KlObjective(base)
    own = evaluate_plan(kl, base, dense_plan(base)).loss
    cut = evaluate_plan(kl, bench, dense_plan(bench)).loss
    assert abs(own) < 1e-4
    assert cut > 10 * abs(own)
    nothing = VariantBench(base, "flap-p100")
    assert evaluate_plan(kl, nothing, dense_plan(nothing)).loss == pytest.approx(own, abs=1e-6)


def test_everything_that_is_stored_is_the_variants_own(base, bench):
    name = "model.layers.0.self_attn.q_proj"
    spec = Setup.of(base.config).lists[name][0]
    assert base.key(name, spec).digest != bench.key(name, spec).digest
    assert base.stats_digest != bench.stats_digest
    assert bench.key(name, spec).variant == "flap-p75"
    embedding = {"model.embed_tokens": spec}
    assert base.head_token(embedding) != bench.head_token(embedding)
    assert base.head_token({}) == bench.head_token({}) == "dense"


def test_every_variant_is_searched_in_one_study(searched):
    _, study_dir, result = searched
    study = Study.open_existing(study_dir)
    records = study.records()
    assert len(records) == TRIALS
    for record in records:
        assert record.plan.variant == ("base", *TOKENS)[record.params["variant"]]
        assert record.family.startswith(record.plan.variant) == (record.plan.variant != "base")
    assert {record.plan.variant for record in records} == {"base", *TOKENS}
    assert result.best.weight_bytes <= 45_000
    backend = optuna.storages.journal.JournalFileBackend(str(study_dir / "journal.log"))
    plain = optuna.load_study(
        study_name="autocomp", storage=optuna.storages.JournalStorage(backend)
    )
    assert {trial.number for trial in plain.best_trials} == {row["trial"] for row in result.front}


def test_plans_decode_and_encode_and_weigh_what_the_study_says(searched):
    chosen, study_dir, _ = searched
    study = Study.open_existing(study_dir)
    setups = {name: stored_setup(chosen, study, name) for name in ("base", *TOKENS)}
    for record in study.records():
        setup = setups[record.plan.variant]
        assert setup.space.decode(record.params) == record.plan
        assert setup.space.encode(record.plan) == record.params
        assert weight_bytes(setup.sketch, record.plan) == record.weight_bytes


def test_the_kl_before_compression_is_kept_and_is_a_constant_of_every_plan(searched, base):
    chosen, study_dir, _ = searched
    study = Study.open_existing(study_dir)
    setup = stored_setup(chosen, study, "flap-p75")
    bench = VariantBench(base, "flap-p75")
    measured = evaluate_plan(KlObjective(base), bench, dense_plan(bench)).loss
    assert setup.loss == pytest.approx(measured, rel=1e-6)
    assert setup.problem(None).fixed_score == setup.loss
    assert setup.sketch.sites == bench.sketch.sites


def test_a_finished_variant_is_measured_from_a_file_that_loads(searched):
    chosen, study_dir, _ = searched
    record = next(
        r for r in Study.open_existing(study_dir).records()
        if r.plan.variant == "flap-p75" and r.feasible
    )  # fmt: skip
    finished = finish_trial(study_dir, None, record.number, Silent())
    folder = study_dir / finished.artefact
    assert (folder / WEIGHTS_FILE).stat().st_size == finished.weight_bytes == record.weight_bytes
    study = Study.open_existing(study_dir)
    assert native_sketch(folder).sites == stored_setup(chosen, study, "flap-p75").sketch.sites
    assert json.loads((folder / "plan.json").read_text())["variant"] == "flap-p75"
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(autocomp.load(folder)(ids).logits, autocomp.load(folder)(ids).logits)
    assert finished.heldout_kl_nats == pytest.approx(record.loss, rel=1.0)


def test_show_explains_a_trial_of_a_variant(searched):
    chosen, study_dir, _ = searched
    study = Study.open_existing(study_dir)
    record = next(r for r in study.records() if r.plan.variant == "flap-p75" and r.feasible)
    table = show_trial(study_dir, None, record.number)
    setup = stored_setup(chosen, study, "flap-p75")
    assert table.weight_bytes == record.weight_bytes
    assert {row.site: row.shape for row in table.rows if row.shape != (0, 0)}.items() <= {
        site.name: site.shape for site in setup.sketch.sites
    }.items()
    assert table.predicted_loss > setup.loss
    assert table.predicted_loss == pytest.approx(record.loss, rel=0.5)


def test_resuming_measures_nothing_and_the_same_seed_gives_the_same_study(searched, tmp_path):
    chosen, study_dir, _ = searched

    def values(place: Path) -> list[tuple]:
        return [
            (r.logical, r.digest, r.state, r.loss, r.origin)
            for r in Study.open_existing(place).records()
        ]

    before = values(study_dir)
    run_search(chosen, study_dir=study_dir, storage=None, progress=Silent())
    assert values(study_dir) == before
    run_search(chosen, study_dir=tmp_path, storage=None, progress=Silent())
    assert values(tmp_path) == before


def test_an_edit_that_is_not_the_studys_is_refused(searched, monkeypatch):
    chosen, study_dir, _ = searched
    search = Search(chosen, study_dir, None, Silent())
    known = search.study.get_variant("flap-p75")
    monkeypatch.setattr(search.study, "get_variant", lambda token: known | {"edit_digest": "0"})
    with pytest.raises(ConfigError, match="not the one that the study"):
        search.variants.bench("flap-p75")


def test_one_variant_is_kept_beside_the_base(searched):
    chosen, study_dir, _ = searched
    variants = Search(chosen, study_dir, None, Silent()).variants
    first = variants.bench("flap-p75")
    assert variants.bench("base") is variants.base
    assert variants.bench("flap-p75") is first
    assert variants.bench("wandawidth-p50") is not first
    assert variants.bench("wandawidth-p50").base is variants.base


def test_a_budget_that_only_a_variant_holds(trained_llama_path, tmp_path):
    """Bypasses are off, so that width is the only way to be that small."""
    changes = {"space.bypass": False, "search.trials": 6, "space.linear": ["gptq-w4g16"]}
    tight = config(trained_llama_path, **changes, **{"budget.max_bytes": 46_100})
    assert Setup.of(tight).reach("weight_bytes")[0] > 46_100
    result = run_search(tight, study_dir=tmp_path / "a", storage=None, progress=Silent())
    assert result.best.weight_bytes <= 46_100
    records = Study.open_existing(tmp_path / "a").records()
    assert {record.plan.variant for record in records} == {"wandawidth-p50"}
    assert show_trial(tmp_path / "a", None, result.best.number).rows
    hopeless = config(trained_llama_path, **changes, **{"budget.max_bytes": 20_000})
    with pytest.raises(InfeasibleError, match="wandawidth-p50"):
        run_search(hopeless, study_dir=tmp_path / "b", storage=None, progress=Silent())


def test_the_estimate_counts_a_variant_as_much_as_the_base(trained_llama_path):
    alone = estimate(config(trained_llama_path, **{"space.variants": []}))
    both = estimate(config(trained_llama_path))
    assert both.options == 3 * alone.options
    assert both.disk_bytes == 3 * alone.disk_bytes
    assert both.ram_bytes > alone.ram_bytes
    assert both.space_size_log10 == pytest.approx(alone.space_size_log10 + math.log10(3))
    assert set(both.minutes) - set(alone.minutes) == {"prepare variants"}


def test_the_map_of_bits_has_the_variants_shapes(searched):
    """The same plan as bits a weight: right only with the widths of the variant."""
    _, study_dir, _ = searched
    view = open_view(str(study_dir))
    record = next(r for r in view.study.records() if r.plan.variant == "wandawidth-p50")
    shapes = Prepared.of(view.study, "wandawidth-p50").shapes
    found = best_bits(view, SimpleNamespace(points=[], best=record.number))
    expected = bits_map(sketch_of(str(view.setting("model")), shapes), record.plan)
    assert found == expected
    assert found != bits_map(sketch_of(str(view.setting("model"))), record.plan)


@pytest.mark.parametrize("tokens", [["flop-p80"], ["gptq-w4g64"], ["flap-q"], ["flap-p80"] * 2])
def test_what_is_no_variant_is_refused(trained_llama_path, tokens):
    with pytest.raises(ConfigError, match=r"variants"):
        config(trained_llama_path, **{"space.variants": tokens})
