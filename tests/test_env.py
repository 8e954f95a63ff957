import os
from pathlib import Path

import pytest

from autocomp import env


def test_cache_defaults_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMP_CACHE", raising=False)
    monkeypatch.delenv("AUTOCOMP_REFERENCE_CACHE", raising=False)
    assert env.cache_dir() == Path.home() / ".cache" / "autocomp"
    assert env.reference_dir() == env.cache_dir() / "models"


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMP_CACHE", "~/elsewhere")
    monkeypatch.delenv("AUTOCOMP_REFERENCE_CACHE", raising=False)
    assert env.cache_dir() == Path.home() / "elsewhere"
    assert env.reference_dir() == Path.home() / "elsewhere" / "models"
    monkeypatch.setenv("AUTOCOMP_REFERENCE_CACHE", "/models")
    assert env.reference_dir() == Path("/models")


def test_storage_prefers_the_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMP_STORAGE", raising=False)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    assert env.storage_url() is None
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///optuna.db")
    assert env.storage_url() == "sqlite:///optuna.db"
    monkeypatch.setenv("AUTOCOMP_STORAGE", "sqlite:///own.db")
    assert env.storage_url() == "sqlite:///own.db"


def test_log_level_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOCOMP_LOG_LEVEL", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert (env.log_level(), env.no_color()) == ("WARNING", False)
    monkeypatch.setenv("AUTOCOMP_LOG_LEVEL", "debug")
    monkeypatch.setenv("NO_COLOR", "1")
    assert (env.log_level(), env.no_color()) == ("DEBUG", True)


def test_ray_is_prepared_without_overruling_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert env.ray_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "host:6379")
    assert env.ray_address() == "host:6379"
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "1")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    env.prepare_ray()
    assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
