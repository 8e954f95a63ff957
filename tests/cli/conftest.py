"""A small real study, and a way to run the program in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution
from typer.testing import CliRunner

from autocomp.cli.main import app
from autocomp.config import fingerprint, load_config
from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.search.records import FinishedRecord, Measured, NewTrial
from autocomp.search.study import Study

TRIALS = (
    ("uniform", "quantized", "rtn-w4g64", 80_000_000, 0.50),
    ("probe-sparse", "sparse", "magnitude-2:4+rtn-w8g64", 79_000_000, 0.60),
    ("knapsack", "quantized", "rtn-w5g64", 79_900_000, 0.30),
    ("mutation", "quantized", "rtn-w3g64", 60_000_000, 1.50),
)


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def run() -> Callable[..., Answer]:
    def call(*arguments: object) -> Answer:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in ("AUTOCOMP_STORAGE", "OPTUNA_STORAGE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path / "cache"))


def fill(study: Study) -> None:
    for index, (origin, family, token, size, kl) in enumerate(TRIALS):
        number = study.add(
            NewTrial(
                logical=index,
                params={"layer": index},
                distributions={"layer": IntDistribution(0, 9)},
                plan=Plan({"layer": LayerSpec.parse(token)}),
                origin=origin,
                family=family,
                weight_bytes=size,
                constraints={"weight_bytes": size - 80_000_000},
            )
        )
        study.tell_measured(number, Measured(kl, (kl, kl), 16384, 1.0))
    study.set_finished(
        FinishedRecord(0, "artefacts/trial-0", 0.55, 0.01, 12.0, 80_000_000, 0.55, 0.01)
    )
    study.set_finished(
        FinishedRecord(2, "artefacts/trial-2", 0.33, 0.01, 10.0, 79_900_000, 0.33, 0.01)
    )


def empty_study(directory: Path, storage: str | None = None) -> Study:
    config = load_config(None, {"model": "no-such-model", "budget.max_bytes": "80MB"})
    return Study.open(storage, directory, fingerprint=fingerprint(config))


@pytest.fixture
def study_dir(tmp_path) -> Path:
    directory = tmp_path / "study"
    fill(empty_study(directory))
    return directory
