"""A search under a limit of measured milliseconds, end to end, and its study priced anew."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from autocomp.config import StudyConfig, load_config
from autocomp.core.cost import DECODE_MS, PREFILL_MS, WEIGHT_BYTES
from autocomp.core.errors import ConfigError, InfeasibleError
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.cost import Device, Workload, cost_model, site_data_bytes
from autocomp.cost.ops import model_key, site_ops
from autocomp.cost.times import DECODE, Conditions, OpTime, Overhead, TimeTable
from autocomp.search.explain import show_trial
from autocomp.search.reprice import finished_efficiency, reprice
from autocomp.search.run import run_search
from autocomp.search.setup import Setup
from autocomp.search.study import Study

TRIALS = 5
LIMIT_MS = 1.05
OVERHEAD = Overhead(1.0, 1e-4, 5e-5, 5e-5, 9, 0.01)


def config(model: Path, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 256,
        "data.rungs": (128,),
        "data.heldout_tokens": 128,
        "space.linear": ("rtn-w2g16", "rtn-w4g16", "rtn-w8g16"),
        "space.embedding": ("rtn-w4g16", "rtn-w8g16"),
        "budget.max_decode_ms": LIMIT_MS,
        "budget.max_bytes": "1MB",
        "budget.context": 64,
        "budget.device": "bench-test",
        "budget.times": "measured",
        "search.trials": TRIALS,
        "search.baselines": 2,
        "search.ladder": 2,
        "search.finalists": 1,
        "search.finish": "none",
    }
    return load_config(None, settings | changes)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the device that is made up here from other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def measured(trained_llama_path: Path) -> StudyConfig:
    """A configuration whose operations have all been measured: 20 ns a byte and 5 us a call."""
    Device("a slow one", 5e7, 1e12, "made up").save("bench-test")
    found = config(trained_llama_path)
    setup = Setup.of(found)
    sketch, work = setup.sketch, setup.workload
    times = {}
    for site, specs in setup.site_lists.items():
        for spec in (*specs, Plan({})[site]):
            size = site_data_bytes(sketch, site, spec)
            for key in site_ops(sketch, site, spec, work, DECODE):
                times[key] = OpTime(5e-6 + 20e-9 * size, 0.01, 15, size, 0, spec.token())
    for cache in sketch.caches():
        for key in site_ops(sketch, cache.name, Plan({})[cache.name], work, DECODE):
            times[key] = OpTime(2e-5, 0.01, 15, 1000, 0, "dense")
    conditions = Conditions("a slow one", "float32", 1, {})
    key = model_key(sketch, work, DECODE)
    TimeTable("bench-test", conditions, times, {key: OVERHEAD}).save()
    return found


@pytest.fixture(scope="module")
def searched(measured, tmp_path_factory):
    study_dir = tmp_path_factory.mktemp("study")
    result = run_search(measured, study_dir=study_dir, storage=None, progress=Silent())
    return study_dir, result


def test_the_limit_binds_and_is_held_by_everything_measured(measured, searched):
    study_dir, result = searched
    study = Study.open_existing(study_dir)
    setup = Setup.of(measured)
    low, high = setup.reach(DECODE_MS)
    assert low < LIMIT_MS < high
    full = [record for record in study.records() if record.feasible]
    assert full
    for record in full:
        assert record.costs == setup.costs(record.plan)
        assert record.costs[DECODE_MS] <= LIMIT_MS / (1 + OVERHEAD.error)
        assert record.sources == {DECODE_MS: "measured", WEIGHT_BYTES: "exact"}
    assert max(record.costs[DECODE_MS] for record in full) > 0.8 * LIMIT_MS
    assert result.sources == {WEIGHT_BYTES: "exact", DECODE_MS: "measured"}
    shown = show_trial(study_dir, None, result.best.number).to_json()
    assert shown["cost_sources"][DECODE_MS] == "measured"
    assert shown["costs"][DECODE_MS] <= LIMIT_MS
    with pytest.raises(InfeasibleError, match=r"--max-decode-ms .* needs .* ms, measured\)"):
        Setup.of(config(Path(measured.model), **{"budget.max_decode_ms": 0.9 * low})).check_reach()


def test_a_finished_plan_has_its_speed(measured, searched):
    study_dir, result = searched
    records = Study.open_existing(study_dir).records()
    (row, *_) = finished_efficiency([r for r in records if r.number == result.best.number])
    speed = row["speed"]
    assert (speed["source"], speed["device"]) == ("measured", "bench-test")
    assert speed["decode_ms"] == pytest.approx(records[row["trial"]].costs[DECODE_MS])
    assert speed["speedup"] == speed["base_decode_ms"] / speed["decode_ms"]
    assert speed["speedup"] > 1
    assert speed["mfu"] == pytest.approx(speed["flops_per_s"] / 1e12)
    flops = row["flops_per_token"]
    assert speed["flops_per_s"] == pytest.approx(1e3 * flops / speed["decode_ms"])
    assert row["compression_ratio"] > 1
    json.dumps(result.to_json())


def test_a_study_is_priced_anew_without_running_it(measured, searched):
    study_dir, _ = searched
    study = Study.open_existing(study_dir)
    for device in ("h100", "rtx4090"):
        work = Workload(512, 4, device)
        found = reprice(study, measured, PREFILL_MS, work)
        assert (found.cost, found.source) == (PREFILL_MS, "modelled")
        model = cost_model(PREFILL_MS, Setup.of(measured).sketch, work)
        for record, before in zip(found.records, study.records(), strict=True):
            assert record.loss == before.loss
            assert record.cost == model.predict(record.plan) * model.tick
            assert record.sources[PREFILL_MS] == "modelled"
            assert DECODE_MS not in record.costs
        on_front = [r for r in found.records if r.number in found.front]
        ranked = sorted(on_front, key=lambda record: record.cost)
        losses = [record.loss for record in ranked]
        assert losses == sorted(losses, reverse=True)
        assert all(row["speed"]["device"] == device for row in found.efficiency)
        assert found.efficiency
    with pytest.raises(ConfigError, match="unknown device"):
        reprice(study, measured, DECODE_MS, Workload(512, 4, "h10"))


def test_the_command_line_prices_anew_and_draws_the_roof(searched, tmp_path):
    from typer.testing import CliRunner

    from autocomp.cli.main import app

    study_dir, _ = searched
    page = tmp_path / "report.html"
    arguments = ["front", str(study_dir), "--cost-device", "rtx4090", "--json", "--html"]
    answer = CliRunner().invoke(app, [*arguments, str(page)])
    assert answer.exit_code == 0, answer.output
    data = json.loads(answer.stdout)
    assert data["cost"] == DECODE_MS
    assert data["cost_sources"] == {DECODE_MS: "modelled"}
    assert data["settings"]["device"] == "rtx4090"
    assert data["roofline"]["device"]["name"] == "NVIDIA GeForce RTX 4090"
    assert 0 < data["front"][0][DECODE_MS] < 0.01
    text = page.read_text(encoding="utf-8")
    assert "<h2>Roofline</h2>" in text
    assert "decoding a token, ms (modelled)" in text
    joint = data["joint_front"]
    assert list(joint["reference"]) == ["kl_nats", WEIGHT_BYTES, DECODE_MS]
    assert joint["reference"][WEIGHT_BYTES] == 1_000_000
    assert 0 < joint["share"] < 1
    plain = CliRunner().invoke(app, ["front", str(study_dir)])
    assert "front of kl_nats × weight_bytes × decode_ms" in plain.stdout
    assert "Efficiency of finished plans" in plain.stdout
    assert "measured, bench-test" in plain.stdout
    wrong = CliRunner().invoke(app, ["front", str(study_dir), "--cost", "seconds"])
    assert wrong.exit_code == 2
