"""``autocomp check`` around a fake estimate."""

import json
from dataclasses import dataclass, field

import pytest

from autocomp.core.errors import InfeasibleError
from autocomp.search.estimate import CostRange


@dataclass
class FakeEstimate:
    smallest_bytes: int = 60_000_000
    largest_bytes: int = 200_000_000
    groups: int = 271
    options: int = 12
    space_size_log10: float = 248.0
    minutes: dict = field(default_factory=lambda: {"score": 2.0, "total": 9.5})
    disk_bytes: int = 1_000_000
    ram_bytes: int = 2_000_000
    costs: dict = field(
        default_factory=lambda: {
            "weight_bytes": CostRange(6e7, 2e8, 8e7, "exact"),
            "decode_ms": CostRange(0.25, 1.5, 0.5, "modelled"),
        }
    )


class FakeSetup:
    def __init__(self, config):
        self.config = config

    def check_feasible(self):
        if (self.config.budget.max_bytes or 1e12) < 60_000_000:
            raise InfeasibleError("the smallest plan needs 60000000 bytes")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr("autocomp.search.estimate.estimate", lambda config: FakeEstimate())
    monkeypatch.setattr("autocomp.search.setup.Setup.of", FakeSetup)


def test_table(run):
    answer = run("check", "tiny", "--max-bytes", "80MB")
    assert answer.code == 0
    for part in ("271", "10^248", "60.0 MB to 200.0 MB", "80.0 MB", "9.5 min"):
        assert part in answer.out


def test_a_modelled_cost_says_so_and_of_what(run):
    answer = run("check", "tiny", "--max-decode-ms", "0.5", "--cost-device", "a100")
    assert answer.code == 0
    for part in ("decode_ms, reachable (modelled, a100)", "0.25 ms to 1.5 ms", "0.5 ms"):
        assert part in answer.out


def test_json(run):
    answer = run("check", "-c", "demo", "--json")
    data = json.loads(answer.out)
    assert data["estimate"]["smallest_bytes"] == 60_000_000
    assert data["config"]["budget"]["max_bytes"] == 100_000_000


def test_infeasible_budget_exits_with_3_and_still_shows_the_range(run):
    answer = run("check", "tiny", "--max-bytes", "10MB")
    assert answer.code == 3
    assert "60.0 MB" in answer.out
    assert "60000000" in answer.err


def test_schema_needs_no_model(run):
    schema = json.loads(run("check", "--schema").out)
    assert "budget" in schema["properties"]


def test_no_model_exits_with_2(run):
    assert run("check").code == 2
