"""FLAP on layers with known inputs: what is dropped, what it costs, and what the bias restores."""

from dataclasses import dataclass

import pytest
import torch

from autocomp.core.stats import Stats
from autocomp.methods.structure.flap import Flap, FlapSpec, fluctuation
from autocomp.testing.spaces import toy_sketch

CHANNELS = 192


@dataclass
class Layers:
    """A toy model's MLP outputs with the inputs they see."""

    inputs: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]

    def edit(self, percent: float):
        stats = {
            name: Stats(mean=x.mean(dim=0), norms=x.square().mean(dim=0).sqrt())
            for name, x in self.inputs.items()
        }
        return Flap().edit(toy_sketch(), FlapSpec(percent), self.weights.__getitem__, stats)

    def outputs(self, edit, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a layer gave before and after an edit, (tokens, out)."""
        x, weight = self.inputs[name], self.weights[name]
        kept = edit.kept[name.rpartition(".")[0]]
        return x @ weight.T, x[:, kept] @ weight[:, kept].T + edit.bias[name]


@pytest.fixture
def layers():
    """Correlated inputs with means and unequal spreads, in fp64 so that sums are exact."""
    generator = torch.Generator().manual_seed(0)
    inputs, weights = {}, {}
    for block in range(2):
        name = f"model.layers.{block}.mlp.down_proj"
        spread = torch.rand(CHANNELS, generator=generator).double() ** 2
        noise = torch.randn(600, CHANNELS, generator=generator).double()
        noise += torch.randn(600, 1, generator=generator)
        mean = torch.randn(CHANNELS, generator=generator)
        inputs[name] = noise * spread + mean
        weights[name] = torch.randn(64, CHANNELS, generator=generator).double()
    return Layers(inputs, weights)


def test_the_mean_output_stays(layers):
    edit = layers.edit(50)
    assert len(edit.kept) == 2
    for name in layers.inputs:
        before, after = layers.outputs(edit, name)
        assert torch.allclose(before.mean(dim=0), after.mean(dim=0), atol=1e-9)
        assert float(edit.bias[name].norm()) > 1.0, "without the bias it would not"


def test_the_squared_error_is_the_covariance_of_what_is_dropped(layers):
    """``tr(W_p Cov_p W_pᵀ)``."""
    edit = layers.edit(50)
    for name, x in layers.inputs.items():
        before, after = layers.outputs(edit, name)
        gone = torch.ones(CHANNELS, dtype=torch.bool)
        gone[edit.kept[name.rpartition(".")[0]]] = False
        dropped = layers.weights[name][:, gone]
        covariance = torch.cov(x[:, gone].T, correction=0)
        expected = torch.trace(dropped @ covariance @ dropped.T)
        assert float((before - after).square().sum(dim=1).mean()) == pytest.approx(float(expected))


def test_uncorrelated_channels_cost_what_their_scores_say():
    """The inputs are columns of a Hadamard matrix, so their covariance is exactly diagonal."""
    signs = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(8):
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    name = "model.layers.0.mlp.down_proj"
    spread = torch.linspace(0.1, 2.0, CHANNELS, dtype=torch.float64)
    inputs = signs[:, 1 : CHANNELS + 1] * spread + 0.7
    weight = torch.randn(64, CHANNELS, generator=torch.Generator().manual_seed(1)).double()
    layers = Layers({name: inputs}, {name: weight})
    edit = layers.edit(50)
    before, after = layers.outputs(edit, name)
    stats = Stats(mean=inputs.mean(dim=0), norms=inputs.square().mean(dim=0).sqrt())
    score = fluctuation(weight, stats)
    gone = torch.ones(CHANNELS, dtype=torch.bool)
    gone[edit.kept["model.layers.0.mlp"]] = False
    error = float((before - after).square().sum(dim=1).mean())
    assert error == pytest.approx(float(score[gone].sum()))
    assert float(score[gone].max()) <= float(score[~gone].min())


def test_constant_channels_go_first_and_for_nothing(layers):
    name = "model.layers.0.mlp.down_proj"
    constant = torch.arange(0, CHANNELS, 2)
    layers.inputs[name][:, constant] = torch.linspace(-3, 3, len(constant)).double()
    layers.inputs.pop("model.layers.1.mlp.down_proj")
    edit = layers.edit(50)
    assert torch.equal(edit.kept["model.layers.0.mlp"], torch.arange(1, CHANNELS, 2))
    before, after = layers.outputs(edit, name)
    assert torch.allclose(before, after, atol=1e-9)


def test_one_ranking_over_all_layers_gives_each_its_own_width(layers):
    """16 channels far above the rest of one layer, 96 above the rest of the other; 112 stay."""
    first, second = layers.inputs
    for name in layers.inputs:
        layers.weights[name] = torch.ones(64, CHANNELS, dtype=torch.float64)
        values = torch.randn(600, CHANNELS, generator=torch.Generator().manual_seed(2)).double()
        layers.inputs[name] = (values - values.mean(dim=0)) / values.std(dim=0)
    layers.inputs[first][:, :16] *= 30
    layers.inputs[second][:, :96] *= 3
    edit = layers.edit(100 * 112 / 384)
    assert torch.equal(edit.kept["model.layers.0.mlp"], torch.arange(16))
    assert torch.equal(edit.kept["model.layers.1.mlp"], torch.arange(96))


def test_keeping_everything_is_the_identity(layers):
    assert not layers.edit(100).kept


@pytest.mark.parametrize("percent", [1, 30, 66, 99])
def test_widths_are_multiples_and_the_total_is_the_nearest(layers, percent):
    edit = layers.edit(percent)
    widths = [len(edit.kept.get(f"model.layers.{block}.mlp", range(192))) for block in range(2)]
    assert all(width % 16 == 0 and width >= 16 for width in widths)
    nearest = max(2, round(percent / 100 * 2 * CHANNELS / 16))
    assert sum(widths) == 16 * nearest
