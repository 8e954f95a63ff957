import pytest
import torch

from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods.compose import compress
from autocomp.testing.methods import output_error, site


def decode(token, weight, stats):
    return compress(weight, LayerSpec.parse(token), stats, "float16").to_dense()


@pytest.mark.parametrize("options", ["w2", "w3g8", "w4g16-sym", "w4-mse", "w3g8-clip"])
def test_diagonal_second_moments_give_round_to_nearest(options):
    """Bitwise."""
    weight, stats = site()
    diagonal = Stats(hessian=torch.diag(stats.hessian.diagonal()))
    gptq = compress(weight, LayerSpec.parse(f"gptq-{options}"), diagonal, "float16")
    rtn = compress(weight, LayerSpec.parse(f"rtn-{options}"), diagonal, "float16")
    for name, tensor in rtn.tensors.items():
        assert torch.equal(gptq.tensors[name], tensor)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_beats_round_to_nearest_on_correlated_inputs(bits):
    """On average over seeds; no theorem."""
    gptq = rtn = 0.0
    for seed in range(5):
        weight, stats = site(seed)
        gptq += output_error(weight, decode(f"gptq-w{bits}g8", weight, stats), stats)
        rtn += output_error(weight, decode(f"rtn-w{bits}g8", weight, stats), stats)
    assert gptq < 0.6 * rtn


def test_grids_are_those_of_the_original_weight():
    weight, stats = site()
    gptq = compress(weight, LayerSpec.parse("gptq-w3g8"), stats, "float16")
    rtn = compress(weight, LayerSpec.parse("rtn-w3g8"), None, "float16")
    assert torch.equal(gptq.tensors["scale"], rtn.tensors["scale"])
    assert torch.equal(gptq.tensors["zero"], rtn.tensors["zero"])
    assert not torch.equal(gptq.tensors["codes"], rtn.tensors["codes"])


def test_dead_inputs_are_zeroed():
    weight, stats = site()
    hessian = stats.hessian.clone()
    hessian[4], hessian[:, 4] = 0, 0
    dense = decode("gptq-w4g8", weight, Stats(hessian=hessian))
    assert bool((dense[:, 4] == 0).all())
    assert bool((dense[:, 5] != 0).any())


def test_scale_of_the_second_moments_is_irrelevant():
    weight, stats = site()
    scaled = Stats(hessian=1024 * stats.hessian)
    assert torch.equal(decode("gptq-w3g8", weight, stats), decode("gptq-w3g8", weight, scaled))


def test_act_order_does_not_care_how_the_inputs_are_numbered():
    weight, stats = site()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    permuted = Stats(hessian=stats.hessian[order][:, order])
    expected = decode("gptq-w3", weight, stats)[:, order]
    assert torch.equal(decode("gptq-w3", weight[:, order], permuted), expected)
