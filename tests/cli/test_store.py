"""``autocomp store`` on a real store."""

import json

import pytest
import torch

from autocomp.env import cache_dir
from autocomp.formats.dense import Dense
from autocomp.layers.store import LayerStore, StoreKey


@pytest.fixture
def filled() -> LayerStore:
    store = LayerStore(cache_dir() / "layers")
    for index in range(3):
        key = StoreKey("model", "base", f"site{index}", "dense", "", "1", "1")
        store.put(key, Dense((64, 64), "float16").pack(torch.zeros(64, 64)))
    return store


def test_usage(run, filled):
    data = json.loads(run("store", "--json").out)
    assert data["entries"] == 3
    assert data["bytes"] == filled.usage().bytes > 0
    assert "3 layers" in run("store").out


def test_prune(run, filled):
    data = json.loads(run("store", "--prune", "1kB", "--json").out)
    assert (data["entries"], data["removed"]) == (0, 3)
    assert "0 layers" in run("store", "--prune", "1GB").out


def test_an_empty_store(run, tmp_path):
    data = json.loads(run("store", "--folder", tmp_path / "none", "--json").out)
    assert (data["entries"], data["bytes"]) == (0, 0)


def test_a_bad_size_exits_with_2(run):
    assert run("store", "--prune", "10G").code == 2
