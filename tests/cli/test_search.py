"""``autocomp search`` around a fake search."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from autocomp.core.errors import InfeasibleError
from autocomp.search.result import summarise
from autocomp.search.study import Study

from .conftest import empty_study, fill


@dataclass
class FakeEstimate:
    smallest_bytes: int = 10_000_000
    largest_bytes: int = 200_000_000
    groups: int = 3
    options: int = 12
    space_size_log10: float = 2.0
    disk_bytes: int = 1_000_000
    ram_bytes: int = 1_000_000
    costs: Mapping = field(default_factory=dict)

    @property
    def minutes(self):
        return {"total": 1.5}


@pytest.fixture
def calls(monkeypatch):
    seen = []

    def run_search(config, *, study_dir, storage, progress):
        seen.append((config, study_dir, storage))
        progress.start("trials", 4, "trial")
        study = empty_study(study_dir, storage)
        fill(study)
        progress.finish()
        (study_dir / "timings.json").write_text(
            '[{"stage": "score", "seconds": 3.0, "share": 0.5, "peak_rss_bytes": 1000000}]'
        )
        return summarise(study, study_dir)

    monkeypatch.setattr("autocomp.search.estimate.estimate", lambda config: FakeEstimate())
    monkeypatch.setattr("autocomp.search.setup.Setup.of", lambda config: Feasible())
    monkeypatch.setattr("autocomp.search.run.run_search", run_search)
    return seen


class Feasible:
    def check_feasible(self):
        pass


class Infeasible:
    def check_feasible(self):
        raise InfeasibleError("the smallest plan needs 10000000 bytes")


def test_json_is_all_of_standard_output(run, calls, tmp_path):
    answer = run(
        "search", "tiny", "--max-bytes", "80MB", "--trials", 60, "--study-dir", tmp_path / "s",
        "--json",
    )  # fmt: skip
    assert answer.code == 0
    data = json.loads(answer.out)
    assert data["best"]["heldout_kl_nats"] == 0.33
    assert data["best_uniform"]["weight_bytes"] == 80_000_000
    assert [row["trial"] for row in data["front"]] == [3, 1, 2]
    config, study_dir, storage = calls[0]
    assert (config.budget.max_bytes, config.search.trials) == (80_000_000, 60)
    assert (study_dir, storage) == (tmp_path / "s", None)
    assert "Estimate for tiny" in answer.err
    assert "trials done in" in answer.err


def test_tables_and_the_line_to_export(run, calls, tmp_path):
    directory = tmp_path / "my study"
    answer = run("search", "tiny", "--max-bytes", "80MB", "--study-dir", directory)
    assert answer.code == 0
    for part in ("Front", "Families at equal cost", "Time and memory"):
        assert part in answer.out
    assert "0.60 × best uniform" in answer.out
    last = answer.out.strip().splitlines()[-1]
    assert last == f"export: autocomp export '{directory}' --best --format native --out best"


def test_quiet_leaves_standard_error_empty(run, calls, tmp_path):
    answer = run("search", "tiny", "--study-dir", tmp_path / "s", "-q")
    assert answer.err == ""
    assert "Front" in answer.out


def test_storage_url_is_passed_and_named(run, calls, tmp_path):
    url = f"sqlite:///{tmp_path / 's.db'}"
    directory = tmp_path / "s"
    directory.mkdir()
    answer = run("search", "tiny", "--study-dir", directory, "--storage", url)
    assert answer.code == 0
    assert calls[0][2] == url
    assert f"autocomp export {url} --best" in answer.out


def test_infeasible_budget_stops_before_work(run, calls, monkeypatch, tmp_path):
    monkeypatch.setattr("autocomp.search.setup.Setup.of", lambda config: Infeasible())
    answer = run("search", "tiny", "--max-bytes", "1MB", "--study-dir", tmp_path / "s", "--json")
    assert answer.code == 3
    assert "10000000" in answer.err
    assert calls == []
    assert answer.out == ""
    assert not (tmp_path / "s").exists()


def test_interrupt_exits_with_130_and_says_how_to_resume(run, calls, monkeypatch, tmp_path):
    def interrupted(config, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr("autocomp.search.run.run_search", interrupted)
    monkeypatch.setattr("sys.argv", ["/bin/autocomp", "search", "tiny", "--trials", "9"])
    answer = run("search", "tiny", "--trials", 9, "--study-dir", tmp_path / "s")
    assert answer.code == 130
    assert "autocomp search tiny --trials 9" in answer.err
    assert str(tmp_path / "s") in answer.err


def test_nothing_finished_exits_with_3(run, calls, monkeypatch, tmp_path):
    def nothing(config, *, study_dir, storage, progress):
        return summarise(empty_study(study_dir, storage), study_dir)

    monkeypatch.setattr("autocomp.search.run.run_search", nothing)
    answer = run("search", "tiny", "--study-dir", tmp_path / "s", "--json")
    assert answer.code == 3
    assert json.loads(answer.out)["best"] is None


def test_unknown_setting_exits_with_2(run, calls, tmp_path):
    answer = run("search", "tiny", "--set", "search.trails=5", "--study-dir", tmp_path / "s")
    assert answer.code == 2
    assert "Did you mean 'trials'" in answer.err
    assert calls == []


def test_another_study_at_the_place_exits_with_2_and_a_diff(run, calls, monkeypatch, tmp_path):
    from autocomp.config import fingerprint

    def opens(config, *, study_dir, storage, progress):
        Study.open(storage, study_dir, fingerprint=fingerprint(config))

    empty_study(tmp_path / "s")
    monkeypatch.setattr("autocomp.search.run.run_search", opens)
    answer = run("search", "other", "--max-bytes", "80MB", "--study-dir", tmp_path / "s")
    assert answer.code == 2
    assert "model: stored 'no-such-model', now 'other'" in answer.err
