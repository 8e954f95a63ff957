"""Progress and output."""

import json
import logging

import pytest

from autocomp.cli import console
from autocomp.core.progress import Silent


def test_plain_lines_go_to_standard_error(capsys):
    with console.progress() as listener:
        listener.start("calibration", 4, "window")
        listener.advance(2)
        listener.finish("4 windows")
        listener.log("a line")
    out, err = capsys.readouterr()
    assert out == ""
    assert "calibration: 4 window …" in err
    assert "calibration done in" in err
    assert "4 windows" in err
    assert err.endswith("a line\n")


def test_a_long_stage_reports_every_ten_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress() as listener:
        listener.start("trials", 60, "trial")
        for _ in range(6):
            now[0] += 4.0
            listener.advance(1, "#3 KL 0.5")
        listener.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:-1] == ["trials: 3/60 trial #3 KL 0.5", "trials: 6/60 trial #3 KL 0.5"]


def test_nested_stages_end_in_order(capsys):
    with console.progress() as listener:
        listener.start("outer")
        listener.start("inner")
        listener.finish()
        listener.finish()
        listener.finish()
    ends = [line for line in capsys.readouterr().err.splitlines() if "done" in line]
    assert [line.split()[0] for line in ends] == ["inner", "outer"]


def test_bars_show_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with console.progress() as listener:
        listener.start("trials", 2, "trial")
        listener.advance(1, "#0")
        listener.finish("all measured")
    out, err = capsys.readouterr()
    assert out == ""
    assert "trials done in" in err
    assert "all measured" in err


def test_quiet_says_nothing():
    with console.progress(quiet=True) as listener:
        assert isinstance(listener, Silent)


def test_json_is_the_only_thing_on_standard_output(capsys):
    console.show_json({"a": [1, 2.5], "path": console.__name__})
    assert json.loads(capsys.readouterr().out)["a"] == [1, 2.5]


def test_show_prints_markup_as_text(capsys):
    console.show("pip install 'autocomp[report]'", "x" * 300)
    out = capsys.readouterr().out
    assert "autocomp[report]" in out
    assert "x" * 300 in out


@pytest.mark.parametrize("level", ["WARNING", "DEBUG"])
def test_logging_follows_the_environment(monkeypatch, level):
    monkeypatch.setenv("AUTOCOMP_LOG_LEVEL", level)
    console.set_up_logging()
    console.set_up_logging()
    logger = logging.getLogger("autocomp")
    assert logging.getLevelName(logger.level) == level
    assert len(logger.handlers) == 1
