"""Tables as text."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from autocomp.report.table import (
    describe,
    megabytes,
    number,
    render_families,
    render_table,
    render_timings,
)


def text_of(part) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(part)
    return console.file.getvalue()


def test_front_table_has_searched_and_finished_columns(info):
    text = text_of(render_table(info))
    assert "searched" in text
    assert "held-out" in text
    row = next(line for line in text.splitlines() if "knapsack" in line)
    assert "0.3000" in row
    assert "0.3300 ±0.0100" in row
    assert "best" in row
    assert "dominated" not in row
    uniform = next(line for line in text.splitlines() if "│ uniform" in line)
    assert "best uniform" in uniform
    assert "corpus pydoc" in text
    assert "window 512" in text


def test_another_metric_has_its_own_columns_and_the_kl_beside(by_error):
    text = text_of(render_table(by_error))
    assert "task_error" in text
    assert "1 − accuracy" in text
    row = next(line for line in text.splitlines() if "knapsack" in line)
    assert "0.3300 ±0.0100" in row
    assert row.count("0.3300") == 2, "held-out error, and KL"
    assert "task_error" in text_of(render_families(by_error))


def test_the_table_ends_with_how_far_to_believe_it(info):
    text = text_of(render_table(info))
    assert "2 of 5 measured plans are tied with the best searched one" in text
    assert "choosing it flatters its KL by 0.0123" in text
    assert "trial 0 against trial 3, held-out KL: +0.2200 [+0.2000, +0.2400], worse" in text
    assert (
        "rank correlation of searched and finished KL over 5 plans: Spearman 0.50, Kendall 0.33"
        in text
    )
    assert "tokens read: calibration 4,096, search 123,456" in text


def test_a_trained_plan_says_so(info):
    points = tuple(
        replace(point, recovery="lora-r8-300") if point.trial == info.best else point
        for point in info.points
    )
    text = text_of(render_table(replace(info, points=points)))
    row = next(line for line in text.splitlines() if "knapsack" in line)
    assert "best, lora-r8-300" in row


def test_an_empty_front_is_a_table_without_rows(empty):
    assert "trial" in text_of(render_table(empty))


def test_families_and_timings(info):
    assert "2.00" in text_of(render_families(info))
    timing = text_of(render_timings(info.timings))
    assert "12.5" in timing
    assert "25.0%" in timing
    assert "│       3 │" in timing


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (80_000_000, "80.00"), (79_980_000, "79.98"), (39_400, "0.0394")],
)
def test_megabytes(value, shown):
    assert megabytes(value) == shown


def test_number():
    assert number(0.123456) == "0.1235"
    assert number(None) == "–"


def test_describe_leaves_out_what_is_not_set(info):
    assert describe(info.settings) == "model tiny · corpus pydoc · window 512 · budget 80.0 MB"


def test_another_cost_has_a_column_that_says_it_is_modelled(by_time):
    text = text_of(render_table(by_time))
    assert "ms (modelled)" in text
    row = next(line for line in text.splitlines() if "knapsack" in line)
    assert "0.08" in row
    assert "flatters its cross entropy by" in text


def test_limits_are_described_with_their_units():
    limits = {"max_memory": 8e9, "max_decode_ms": 1.25, "max_flops": 2.5e8}
    assert describe(limits) == "memory 8.0 GB · decoding 1.25 ms · operations 250 MFLOP"
