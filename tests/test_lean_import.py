"""What a light command must not load: ``autocomp --help`` answers at once."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "triton", "transformers", "scipy", "optuna", "matplotlib", "plotly"}


def loaded_by(code: str) -> set[str]:
    """Return the heavy packages that are loaded after running ``code`` in a fresh interpreter."""
    report = f"\nimport sys\nprint('loaded:', *({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code + report], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_the_probe_sees_a_heavy_package() -> None:
    assert "scipy" in loaded_by("import scipy")


@pytest.mark.parametrize("module", ["autocomp", "autocomp.env", "autocomp.config"])
def test_light_modules(module: str) -> None:
    assert not loaded_by(f"import {module}")


def test_core_is_torch_free() -> None:
    names = (
        "errors",
        "method",
        "plan",
        "progress",
        "recipe",
        "registry",
        "seeds",
        "sketch",
        "spec",
        "stats",
    )
    assert not loaded_by("\n".join(f"import autocomp.core.{name}" for name in names))


def test_command_line() -> None:
    assert not loaded_by("import autocomp.cli.main") & {"torch", "triton", "transformers"}


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["ls", "--help"]])
def test_help_runs_light(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['autocomp', *{arguments!r}]\n"
        "from autocomp.cli.main import main\n"
        "try:\n    code = main()\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "assert not code, code\n"
    )
    assert not loaded_by(code) & {"torch", "triton", "transformers"}
