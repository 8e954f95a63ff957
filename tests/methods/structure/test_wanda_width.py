import torch

from autocomp.core.stats import Stats
from autocomp.methods.structure.wanda_width import WandaWidth, WandaWidthSpec
from autocomp.testing.spaces import toy_sketch


def edit(weights, norms, percent=50.0):
    stats = {name: Stats(norms=value) for name, value in norms.items()}
    return WandaWidth().edit(toy_sketch(), WandaWidthSpec(percent), weights.__getitem__, stats)


NAMES = [f"model.layers.{block}.mlp.down_proj" for block in range(2)]


def test_the_score_is_the_mean_weight_times_the_input_norm():
    """With equal weights the loudest inputs stay, with equal inputs the largest columns."""
    rising = torch.linspace(1, 2, 192)
    ones = {name: torch.ones(64, 192) for name in NAMES}
    loud = edit(ones, {NAMES[0]: rising, NAMES[1]: rising.flip(0)})
    assert torch.equal(loud.kept["model.layers.0.mlp"], torch.arange(96, 192))
    assert torch.equal(loud.kept["model.layers.1.mlp"], torch.arange(96))
    signs = torch.ones(64, 1)
    signs[::2] = -1
    large = edit(dict.fromkeys(NAMES, signs * rising), dict.fromkeys(NAMES, torch.ones(192)))
    assert torch.equal(large.kept["model.layers.0.mlp"], torch.arange(96, 192))


def test_every_layer_gets_the_same_width_and_no_bias():
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(64, 192, generator=generator) for name in NAMES}
    norms = {NAMES[0]: torch.rand(192, generator=generator), NAMES[1]: 100 * torch.ones(192)}
    found = edit(weights, norms, 80)
    assert [len(kept) for kept in found.kept.values()] == [160, 160]
    assert not found.bias


def test_scaling_a_layer_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(64, 192, generator=generator) for name in NAMES}
    norms = {name: torch.rand(192, generator=generator) for name in NAMES}
    first = edit(weights, norms)
    second = edit({name: 8 * w for name, w in weights.items()}, norms)
    assert all(torch.equal(first.kept[mlp], second.kept[mlp]) for mlp in first.kept)
