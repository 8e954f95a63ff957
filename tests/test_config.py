"""The configuration: units, precedence, strictness, presets."""

import json
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from autocomp.config import (
    BudgetConfig,
    DataConfig,
    ObjectiveConfig,
    SearchConfig,
    StudyConfig,
    fingerprint,
    load_config,
    presets,
)
from autocomp.core.errors import AutocompError, ConfigError
from autocomp.core.finish import DEFAULT_FINISH, finish_spec, two_streams
from autocomp.core.recipe import DEFAULT_CALIBRATION, CalibrationText
from autocomp.core.registry import COSTS
from autocomp.core.units import parse_bytes, parse_duration, parse_flops


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80MB", 80_000_000),
        ("80MiB", 80 * 2**20),
        ("80 mb", 80_000_000),
        ("1.5GB", 1_500_000_000),
        ("2kB", 2_000),
        ("1GiB", 2**30),
        (1234, 1234),
        (2e10, 20_000_000_000),
        ("7B", 7),
    ],
)
def test_parse_bytes(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["80M", "MB", "", "-5MB", "eighty", True, "80MBB"])
def test_parse_bytes_refuses(text):
    with pytest.raises(ConfigError, match="80MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), (12.5, 12.5), ("45", 45)]
)
def test_parse_duration(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "30x", "-5s"])
def test_parse_duration_refuses(text):
    with pytest.raises(ConfigError, match="30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("270M", 270_000_000), ("1.5G", 1_500_000_000), ("2 T", 2 * 10**12), (1e9, 10**9), ("7", 7)],
)
def test_parse_flops(text, count):
    assert parse_flops(text) == count


@pytest.mark.parametrize("text", ["270MB", "", "-5M", True, "many"])
def test_parse_flops_refuses(text):
    with pytest.raises(ConfigError, match="270M"):
        parse_flops(text)


def test_limits_are_those_that_are_given():
    budget = BudgetConfig(max_decode_ms=2, max_bytes="80MB")
    assert budget.limits == {"weight_bytes": 80_000_000, "decode_ms": 2.0}
    assert BudgetConfig().limits == {}


def test_the_costs_that_may_be_minimised_are_those_that_there_are():
    allowed = get_args(ObjectiveConfig.model_fields["cost"].annotation)
    assert list(allowed) == list(COSTS)


def test_a_fingerprint_holds_new_settings_only_where_they_count():
    plain = fingerprint(load_config(None, {"model": "m"}))
    assert not {"objective.cost", "budget.device", "budget.max_flops"} & set(plain)
    timed = fingerprint(load_config(None, {"model": "m", "objective.cost": "decode_ms"}))
    assert timed["objective.cost"] == "decode_ms"
    assert timed["budget.device"] == "h100"
    limited = fingerprint(load_config(None, {"model": "m", "budget.max_flops": "1G"}))
    assert limited["budget.max_flops"] == 10**9
    assert "budget.device" not in limited


def test_defaults_need_only_a_model():
    config = load_config(None, {"model": "smollm2-135m"})
    assert config.data.rungs == (1024, 4096, 16384)
    assert config.space.name == "joint"
    assert config.budget.max_bytes is None
    with pytest.raises(ConfigError, match="no model given"):
        load_config()


def test_precedence_set_over_override_over_file_over_default(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("model: a\nseed: 1\nsearch: {trials: 7, finalists: 2}\ndevice: cpu\n")
    config = load_config(
        path, {"search.trials": 8, "seed": 2, "device": None}, ["seed=3", "budget.max_bytes=1MB"]
    )
    assert (config.seed, config.search.trials, config.search.finalists) == (3, 8, 2)
    assert config.device == "cpu"
    assert config.budget.max_bytes == 1_000_000


def test_calibration_text_is_kept_by_its_canonical_token():
    assert load_config(None, {"model": "a"}).data.calibration == DEFAULT_CALIBRATION
    for text in ("selfgen-t1.0", "selfgen-t1"):
        config = load_config(None, {"model": "a", "data.calibration": text})
        assert fingerprint(config)["data.calibration"] == "selfgen-t1"


def test_config_is_frozen_and_hashable():
    config = load_config(None, {"model": "a"})
    with pytest.raises(ValidationError):
        config.seed = 5
    assert hash(config) == hash(load_config(None, {"model": "a"}))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("search.trails", "trials"),
        ("budget.max_byte", "max_bytes"),
        ("max_bytes", "budget.max_bytes"),
        ("sede", "seed"),
        ("data.windows", "window"),
    ],
)
def test_unknown_key_names_the_nearest(key, hint):
    with pytest.raises(ConfigError, match=f"unknown setting .*Did you mean.*{hint}"):
        load_config(None, {"model": "a", key: 1})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("search.trials=0", "search.trials"),
        ("data.rungs=[4096, 1024]", "must increase"),
        ("objective.metric=task_error", "objective: .*needs tasks"),
        ("objective.tasks=[piqa]", "objective: .*--objective task_error"),
        ("objective={metric: task_error, tasks: [piqa, piqa]}", "every task once"),
        ("objective.rungs=[64, 64]", "objective.rungs: .*must increase"),
        ("objective.metric=accuracy", "objective.metric"),
        ("data.rungs=[1000]", "multiples of the window"),
        ("data.calibration_tokens=100", "multiples of the window"),
        ("data.calibration=selfgn-t1", "data.calibration: .*Did you mean 'selfgen'"),
        ("data.calibration=selfgen-hot", "data.calibration: .*selfgen-t<temperature>"),
        ("budget.max_bytes=80M", "cannot read '80M' as a size"),
        ("space.name=jiont", "Did you mean 'joint'"),
        ("target=onnx", "target"),
        ("device=tpu", "device"),
        ("seed=-1", "seed"),
        ("space.linear=[]", "space.linear"),
        ("seed", "expected key=value"),
        ("seed=[1", "not YAML"),
        ("model.name=x", "holds a value"),
    ],
)
def test_bad_values_say_where(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, {"model": "a"}, [assignment])


def test_bad_files(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'demo'"):
        load_config("demmo")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_config(path)
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError):
        load_config(path)


def test_every_preset_loads():
    assert {"demo", "default"} <= set(presets())
    for name in presets():
        assert load_config(name).model


def test_default_preset_states_the_defaults():
    written = load_config("default").model_dump(exclude={"budget"})
    assert written == StudyConfig(model="smollm2-135m").model_dump(exclude={"budget"})


def test_demo_preset_is_small():
    demo = load_config("demo")
    assert demo.search.finalists == 1
    assert demo.search.trials <= 25
    assert demo.budget.max_bytes == 100_000_000
    assert any("sparsegpt" in token for token in demo.space.linear)
    assert any("svd" in token for token in demo.space.linear)


def test_dump_round_trips_through_json_and_yaml():
    config = load_config("demo")
    assert StudyConfig.model_validate_json(config.model_dump_json()) == config
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert StudyConfig.model_validate(yaml.safe_load(text)) == config


def test_fingerprint_ignores_effort_and_place():
    config = load_config("demo")
    longer = load_config(
        "demo",
        {"search.trials": 99, "search.finalists": 3, "device": "cpu", "study_dir": "elsewhere"},
        ["store_bytes=1GB", "search.timeout_s=30m"],
    )
    assert fingerprint(config) == fingerprint(longer)
    assert json.loads(json.dumps(fingerprint(config))) == fingerprint(config)


@pytest.mark.parametrize(
    "key", ["model", "seed", "data.corpus", "data.window", "budget.max_bytes", "space.bypass"]
)
def test_fingerprint_holds_what_changes_values(key):
    values = {"model": "b", "seed": 9, "data.corpus": "c4", "data.window": 256}
    values |= {"budget.max_bytes": "77MB", "space.bypass": False}
    before, after = (
        fingerprint(load_config("demo")),
        fingerprint(load_config("demo", {key: values[key]})),
    )
    assert {name for name in before if before[name] != after[name]} == {key}


def test_fingerprint_holds_of_the_objective_what_it_reads():
    """Rungs in examples change no KL, and where files lie changes no error."""
    ignored = {"objective.rungs": (8, 16), "objective.data_dir": "somewhere"}
    by_kl = fingerprint(load_config("demo", ignored))
    assert by_kl == fingerprint(load_config("demo"))
    assert by_kl["objective.metric"] == "kl_nats"
    tasks = {"objective.metric": "task_error", "objective.tasks": ("piqa",)}
    by_error = fingerprint(load_config("demo", tasks | ignored))
    assert by_error["objective.rungs"] == [8, 16]
    assert by_error["objective.tasks"] == ["piqa"]
    assert not [key for key in by_error if "data_dir" in key]


def test_schema_describes_every_section():
    schema = StudyConfig.model_json_schema()
    assert set(schema["properties"]) == set(StudyConfig.model_fields)
    assert schema["additionalProperties"] is False


def test_the_default_finish_is_one() -> None:
    assert finish_spec(DEFAULT_FINISH).token() == SearchConfig().finish


def test_a_finish_may_follow_two_streams() -> None:
    found = {
        token: (two_streams(token), finish_spec(token))
        for token in ("none", "gptaq", "gptaq+signround-5", "signround-5")
    }
    tuned = finish_spec("signround-5")
    assert list(found.values()) == [(False, None), (True, None), (True, tuned), (False, tuned)]
    for wrong in ("gptaqq", "gptaq+rtn-w4", "signround-5+gptaq"):
        with pytest.raises(AutocompError):
            finish_spec(wrong)


def test_the_default_calibration_is_a_recipe_and_needs_two_windows() -> None:
    assert CalibrationText.parse(DEFAULT_CALIBRATION).token() == DataConfig().calibration
    with pytest.raises(ConfigError, match=r"needs two windows of 512.*set calibration to corpus"):
        load_config(None, {"model": "m", "data.calibration_tokens": 512})
    alone = {"model": "m", "data.calibration_tokens": 512, "data.calibration": "corpus"}
    assert load_config(None, alone).data.calibration == "corpus"


def test_the_driver_follows_from_the_number_of_workers() -> None:
    assert SearchConfig().driver_name == "inline"
    assert SearchConfig(workers=2).driver_name == "ray"
    assert SearchConfig(driver="ray").driver_name == "ray"
    with pytest.raises(ValueError, match=r"inline is one worker, this process, got workers 2"):
        SearchConfig(driver="inline", workers=2)
    with pytest.raises(ValueError, match=r"unknown driver 'rai'\. Did you mean 'ray'\?"):
        SearchConfig(driver="rai")
    with pytest.raises(ValueError, match=r"a share of one GPU, or whole ones, got 1\.5"):
        SearchConfig(resources={"gpus": 1.5})
