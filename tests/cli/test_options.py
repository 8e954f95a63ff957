"""Option groups."""

import inspect
from typing import Annotated

import pytest
from typer import Option

from autocomp.cli.options import (
    Budget,
    Goal,
    Length,
    Output,
    Source,
    Space,
    expanded,
    study_config,
)
from autocomp.core.errors import ConfigError


def test_expanded_replaces_a_group_by_its_fields():
    seen = {}

    def command(budget: Budget, output: Output, extra: Annotated[int, Option()] = 3) -> None:
        """Do it."""
        seen.update(budget=budget, output=output, extra=extra)

    run = expanded(command)
    assert list(inspect.signature(run).parameters) == [
        "max_bytes", "max_memory", "max_decode_ms", "max_prefill_ms", "max_flops", "context",
        "batch", "cost_device", "times",
        "json", "quiet", "extra",
    ]  # fmt: skip
    assert run.__doc__ == "Do it."
    given = dict.fromkeys(inspect.signature(run).parameters) | {
        "max_bytes": "1MB", "batch": 2, "json": True, "quiet": False, "extra": 4,
    }  # fmt: skip
    run(**given)
    assert seen["budget"] == Budget(max_bytes="1MB", batch=2)
    assert seen["output"] == Output(json=True)
    assert seen["extra"] == 4


def test_every_option_reaches_the_configuration():
    config = study_config(
        Source(model="m", seed=4, device="cpu", assign=["search.finalists=5"]),
        Budget(
            max_bytes="80MiB",
            max_memory="1GB",
            max_decode_ms=1.5,
            max_flops="250M",
            context=8192,
            batch=2,
            cost_device="rtx4090",
            max_prefill_ms=90,
            times="mixed",
        ),
        Space(space="bits", target="native", data="ptb", calibration="selfgen-t1"),
        Length(trials=9, timeout="30m", finalists=2),
        Goal(objective="task_error", cost="flops", tasks="arc_easy, piqa", data_dir="files"),
    )
    assert (config.objective.metric, config.objective.cost) == ("task_error", "flops")
    assert (config.budget.max_decode_ms, config.budget.max_flops) == (1.5, 250_000_000)
    assert (config.budget.device, config.budget.times) == ("rtx4090", "mixed")
    assert config.budget.max_prefill_ms == 90
    assert config.objective.tasks == ("arc_easy", "piqa")
    assert config.objective.data_dir == "files"
    assert (config.model, config.seed, config.device) == ("m", 4, "cpu")
    assert config.budget.max_bytes == 80 * 2**20
    assert (config.budget.max_memory, config.budget.context, config.budget.batch) == (
        10**9, 8192, 2,
    )  # fmt: skip
    assert (config.space.name, config.data.corpus) == ("bits", "ptb")
    assert config.data.calibration == "selfgen-t1"
    assert (config.search.trials, config.search.timeout_s) == (9, 1800)
    assert config.search.finalists == 5


def test_the_command_line_wins_over_the_file():
    config = study_config(Source(config="demo"), Budget(max_bytes="99MB"))
    assert config.budget.max_bytes == 99_000_000
    assert config.search.trials == 20


def test_unknown_target_is_refused():
    with pytest.raises(ConfigError, match="native"):
        study_config(Source(model="m"), space=Space(target="onnx"))
