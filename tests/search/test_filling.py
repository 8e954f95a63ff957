"""What is compressed in one call when the store is filled."""

from itertools import chain

import torch

from autocomp.config import load_config
from autocomp.core.spec import LayerSpec
from autocomp.methods._joint import STACKED_ROWS
from autocomp.methods.compose import stacks
from autocomp.search.filling import fill, together
from autocomp.search.workbench import Workbench

SETTINGS = {"data.window": 32, "data.calibration_tokens": 64, "data.rungs": [64]}
SPECS = [LayerSpec.parse(token) for token in ("gptq-w2g8", "gptq-w4g8", "gptq-w4", "rtn-w4g8")]


def test_only_what_one_run_serves_is_stacked():
    assert stacks([8, 8, 8, 8], SPECS) == [[0, 1], [2], [3]]
    mixed = [LayerSpec.parse(f"{step}gptq-w4g8") for step in ("", "actorder+", "wanda-s50+")]
    assert stacks([8, 8, 8], mixed) == [[0], [1], [2]]
    half = STACKED_ROWS // 2
    assert stacks([half, half, 1, 2 * STACKED_ROWS], [SPECS[0]] * 4) == [[0, 1], [2], [3]]


def test_a_block_is_filled_as_its_sites_are_one_by_one(tiny_llama_path, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOCOMP_CACHE", str(tmp_path))
    bench = Workbench(load_config(None, SETTINGS | {"model": str(tiny_llama_path)}))
    sites = [site.name for site in bench.sketch.sites if site.kind == "linear" and not site.block]
    stats = {name: bench.dense_statistics(name) for name in sites}
    lists = dict.fromkeys(sites, SPECS)
    choices = [(name, spec) for name in sites for spec in SPECS]
    stacked = together(bench.sketch, choices)
    assert sorted(map(str, chain(*stacked))) == sorted(map(str, choices))
    readers = [{bench.sketch[name].reads for name, _ in stack} for stack in stacked]
    assert all(len(names) == 1 for names in readers)
    fill(bench, stats, lists)
    files = {bench.store.path(bench.key(*choice)).stat().st_ino for choice in choices}
    assert len(files) == 1
    for name, spec in choices:
        alone = bench.compress(name, spec, stats[name]).result()
        found = bench.store.get(bench.key(name, spec))
        assert all(torch.equal(found.tensors[key], t) for key, t in alone.tensors.items())
