"""The program: help, version, exit codes, and that help stays light."""

import errno
import subprocess
import sys

import pytest

from autocomp import __version__
from autocomp.cli import doctor, main
from autocomp.core.errors import (
    ConfigError,
    ExportError,
    InfeasibleError,
    NumericalError,
    StoreError,
    UnsupportedError,
)


def test_help_lists_every_command(run):
    answer = run("--help")
    assert answer.code == 0
    for name in main.COMMANDS:
        assert f" {name} " in answer.out


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_command_has_help_with_an_example(run, name):
    answer = run(name, "--help")
    assert answer.code == 0
    assert f"autocomp {name}" in answer.out
    assert "--json" in answer.out


def test_help_imports_neither_torch_nor_optuna():
    code = (
        "import sys; from autocomp.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'optuna', 'triton', 'plotly', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip().endswith("HEAVY []")


def test_module_runs():
    found = subprocess.run(
        [sys.executable, "-m", "autocomp", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == f"autocomp {__version__}"


@pytest.mark.parametrize("arguments", [["no-such-command"], ["ls", "methods", "--no-such-flag"]])
def test_usage_errors_exit_with_2(run, arguments):
    assert run(*arguments).code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("bad"), 2),
        (UnsupportedError("bad"), 2),
        (InfeasibleError("bad"), 3),
        (StoreError("bad"), 1),
        (ExportError("bad"), 1),
        (NumericalError("bad"), 1),
        (KeyboardInterrupt("resume like this"), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
    ],
)
def test_errors_become_exit_codes_and_one_message(run, monkeypatch, error, code):
    def fail():
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    answer = run("doctor")
    assert answer.code == code
    assert str(error) in answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err


def test_a_bug_is_not_hidden(run, monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "examine", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run("doctor")
