import pytest
import torch

from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Needs
from autocomp.methods import compose
from autocomp.methods.quantization.rotation import Rotation
from autocomp.testing.methods import compress, output_error, site

KINDS = ("hadamard", "orthogonal", "full")


def step(kind, width, seed=0):
    return Rotation().step(LayerSpec.parse(f"rotation-{kind}-s{seed}+rtn-w4").input, width)


def coherence(weight):
    """Return how far the largest entry of a weight lies above the root mean square."""
    return float(weight.abs().max() / weight.square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_function_is_preserved(kind):
    weight, stats = site()
    turn = step(kind, 32)
    weight, inputs = weight.double(), stats.sample.double()
    turned = turn.absorb(weight, {}) @ turn.absorb(inputs, {}).T
    expected = weight @ inputs.T
    assert float((turned - expected).abs().max() / expected.abs().max()) < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_proxy_loss_is_invariant(kind):
    """``tr(D H Dᵀ)`` of a change is that of the turned change under the turned H."""
    weight, stats = site()
    turn, hessian = step(kind, 32), stats.hessian.double()
    change = weight.double()
    turned, inside = turn.absorb(change, {}), turn.absorb(turn.absorb(hessian, {}).T, {})
    before, after = (change @ hessian * change).sum(), (turned @ inside * turned).sum()
    assert float(after / before) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize(("kind", "falls_by"), [("hadamard", 5), ("orthogonal", 2)])
def test_coherence_of_a_spiked_weight_falls(kind, falls_by):
    """A column 60 times as large as the others, width 128.

    Turned, it is spread over all columns: evenly, by √128 ≈ 11, by Hadamard factors; by factors of
    8 and 16 random entries, whose largest are two or three times their mean, less.
    """
    for seed in range(3):
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(seed))
        weight[:, 7] *= 60
        turned = step(kind, 128, seed).absorb(weight, {})
        assert coherence(turned) < coherence(weight) / falls_by


def test_outlying_columns_no_longer_spoil_a_row_grid():
    """A row's grid spans its largest weight: 60 times the others, so they round to nothing."""
    errors = {"rtn-w4": 0.0, "rotation-hadamard+rtn-w4": 0.0}
    for seed in range(5):
        weight, stats = site(seed)
        weight[:, 7] *= 60
        for token in errors:
            dense = compress(token, weight, stats, "float16").to_dense()
            errors[token] += output_error(weight, dense, stats)
    assert errors["rotation-hadamard+rtn-w4"] < 0.7 * errors["rtn-w4"], errors


def test_nothing_is_stored_but_the_seed():
    shape, token = (24, 32), "rotation-orthogonal-s7+rtn-w4g8"
    layout = compose.layout(LayerSpec.parse(token), shape, "float16")
    assert layout.nbytes == compose.layout(LayerSpec.parse("rtn-w4g8"), shape, "float16").nbytes
    assert layout.to_json()["input"]["seed"] == 7
    assert LayerSpec.parse("rotation-hadamard-s0+rtn-w4").token() == "rotation-hadamard+rtn-w4"


def test_statistics_of_a_turned_input_come_from_those_that_can_be_turned():
    needs = {
        "rtn-w4": set(),
        "gptq-w4": {Needs.HESSIAN},
        "wanda-s50": {Needs.HESSIAN},
        "rtn-w4+absmax-a8-tensor": {Needs.SAMPLE},
    }
    for token, expected in needs.items():
        assert compose.needs(LayerSpec.parse(f"rotation-hadamard+{token}")) == expected
