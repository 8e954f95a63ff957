"""``autocomp ls``."""

import json

import pytest

from autocomp.cli.ls import KINDS
from autocomp.core.registry import KERNELS, METHODS, SAMPLERS, SPACES


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lists_names_with_a_summary(run, kind):
    rows = json.loads(run("ls", kind, "--json").out)
    assert rows
    assert all(row["name"] and row["summary"] for row in rows)


def test_methods_are_the_registry(run):
    rows = json.loads(run("ls", "methods", "--json").out)
    assert sorted(row["name"] for row in rows) == sorted(METHODS)
    assert all(row["reference"].startswith("https://") for row in rows)
    told = {"kind", "slot", "needs", "formats", "targets", "paper"}
    assert all(told <= row.keys() for row in rows)
    (gptq,) = (row for row in rows if row["name"] == "gptq")
    assert (gptq["kind"], gptq["slot"], gptq["formats"]) == ("site", "quantizer", "uniform")


def test_table(run):
    out = run("ls", "spaces").out
    assert all(name in out for name in SPACES)


def test_samplers_are_the_registry_and_the_slow_one_says_so(run):
    rows = {row["name"]: row["summary"] for row in json.loads(run("ls", "samplers", "--json").out)}
    assert list(rows) == list(SAMPLERS)
    assert "6 s" in rows["gp"]
    assert "budget" in rows["random"]


def test_kernels_say_which_back_end_runs_and_why_others_do_not(run):
    rows = json.loads(run("ls", "kernels", "--json").out)
    assert list(dict.fromkeys(row["name"] for row in rows)) == list(KERNELS)
    assert all(row["runs here"] == "yes" or row["runs here"][:4] == "no: " for row in rows)
    assert all(row["runs here"] == "yes" for row in rows if row["backend"] == "reference")
    (packed,) = (row for row in rows if row["backend"] == "int4pack")
    assert packed["dtypes"] == "bfloat16"
    assert "16 rows" in packed["takes"]


def test_unknown_kind_exits_with_2(run):
    answer = run("ls", "method")
    assert answer.code == 2
    assert "Did you mean 'methods'" in answer.err
