"""Masks and their allocation beside the authors' code."""

import pytest
import torch

from autocomp.core.spec import LayerSpec
from autocomp.methods._column_solver import ColumnFactor, solve_columns
from autocomp.search.allocations.base import AllocatedSite
from autocomp.search.allocations.owl import Owl
from autocomp.search.scores.base import LinearSite

KINDS = {"half": "wanda-s50", "pattern": "wanda-2:4"}


@pytest.mark.parametrize(
    ("name", "token", "options"),
    [
        ("half", "sparsegpt-s50", {}),
        ("strips", "sparsegpt-s50", {"strip": 32}),
        ("pattern", "sparsegpt-2:4", {}),
        ("rounded", "sparsegpt-s50", {"bits": 4}),
    ],
)
def test_sparsegpt_prunes_and_updates_alike(layer, official, name, token, options):
    """Theirs was asked for one weight less, as it drops one more than it is asked for."""
    bits = options.pop("bits", None)
    grid = None if bits is None else layer.grid(bits, len(layer.hessian))
    prune = LayerSpec.parse(token).mask
    factor = ColumnFactor.of(layer.hessian, act_order=False)
    solved = solve_columns(layer.weight, factor, prune=prune, grid=grid, **options)
    assert torch.allclose(solved.weight, official[name], rtol=1e-5, atol=1e-5)
    if bits is None:
        assert torch.equal(solved.keep, official[name] != 0)
    if not options and bits is None:
        assert torch.allclose(layer.made(token), official[name], rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_wanda_drops_the_same_weights(layer, official, kind):
    assert torch.equal(layer.made(KINDS[kind]) != 0, official[kind])


def missing(layer, keep):
    """Return what each row lacks on average, ``|ε|``."""
    return ((layer.weight * layer.stats.mean).masked_fill(keep, 0).sum(1)).abs()


@pytest.mark.parametrize("kind", KINDS)
def test_dsnot_swaps_the_same_weights_first(layer, official, kind):
    """Where both swap. A swap of theirs that ours lacks does not bring ε nearer to 0."""
    start = layer.made(KINDS[kind]) != 0
    ours, theirs = layer.made(f"{KINDS[kind]}+dsnot-c1") != 0, official[f"first_{kind}"]
    moved, other = (ours != start).any(1), (theirs != start).any(1)
    assert int((moved & other).sum()) >= 0.3 * len(start)
    assert torch.equal(ours[moved & other], theirs[moved & other])
    alone = other & ~moved
    assert bool((missing(layer, theirs)[alone] >= missing(layer, start)[alone]).all())


@pytest.mark.parametrize("kind", KINDS)
def test_dsnot_leaves_less_of_the_mean_error(layer, official, kind):
    """Theirs swaps past 0 by default, and adds to the error of the output."""
    ours, theirs = layer.made(f"{KINDS[kind]}+dsnot-c10"), official[f"usual_{kind}"]
    for name in ("usual", "stop"):
        left = missing(layer, official[f"{name}_{kind}"]).mean()
        assert float(missing(layer, ours != 0).mean()) < float(left)
    assert torch.equal((ours != 0).sum(1), theirs.sum(1))
    token = f"{KINDS[kind]}+dsnot-c10"
    assert layer.ratio(token, official[f"usual_{kind}_loss"]) < 0.8
    assert layer.ratio(token, official[f"stop_{kind}_loss"]) < 1.05


@pytest.mark.parametrize("percent", [50, 70])
def test_owl_keeps_as_many_weights_of_each_block(layer, official, percent):
    weights = [layer.weight.roll(7 * index, 1) for index in range(4)]
    signals = [Owl().read({"q": LinearSite(weight, layer.stats)})["q"] for weight in weights]
    assert len(set(signals)) > 1
    sites = [
        AllocatedSite(str(index), layer.weight.numel(), signal)
        for index, signal in enumerate(signals)
    ]
    shares = Owl().profile(sites, 1 - percent / 100)
    width = layer.weight.shape[1]
    kept = torch.tensor([width - int(width * (1 - share)) for share in shares.values()])
    expected = official[f"s{percent}"].sum(2)
    assert torch.equal(expected, kept[:, None].expand_as(expected))
