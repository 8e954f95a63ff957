from dataclasses import replace

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.formats.sum import Sum
from autocomp.methods.quantization.squeezellm import SqueezeLlmSpec, exact_mask
from autocomp.testing.methods import compress, site


def weighted(weight, dense, stats):
    return float((stats.sensitivity * (dense - weight).square()).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weighted_error_is_below_that_of_a_uniform_grid_with_as_many_levels(bits):
    weight, stats = site()
    found = compress(f"squeezellm-w{bits}", weight, stats, "float16").to_dense()
    for other in (f"rtn-w{bits}", f"rtn-w{bits}-mse", f"lutgemm-w{bits}-offset"):
        grid = compress(other, weight, stats, "float16").to_dense()
        assert weighted(weight, found, stats) < weighted(weight, grid, stats)


def test_few_distinct_values_are_kept_exactly():
    weight = site()[0].sign() * torch.tensor([0.5, 1.0]).repeat(16)
    assert torch.equal(compress("squeezellm-w2", weight, site()[1], "float16").to_dense(), weight)


def test_exact_weights_are_exact_and_as_many_as_asked_for():
    weight, stats = site()
    stored = compress("squeezellm-w2-o10", weight, stats, "float16")
    assert isinstance(stored.layout, Sum)
    base, sparse = stored.layout.unpack(stored.tensors)
    mask = sparse.layout.marked(sparse.tensors)
    assert int(mask.sum()) == int(0.1 * weight.numel()) == 76
    error = (stored.to_dense() - weight)[mask].abs()
    assert bool((error <= 2**-11 * weight[mask].abs() + 2**-11).all())
    # their codes stand for the value of the row that is nearest to 0
    nearest = base.tensors["codebook"].float().abs().amin(dim=1, keepdim=True).expand(weight.shape)
    assert torch.equal(base.to_dense().abs()[mask], nearest[mask])


def test_one_of_nine_is_chosen_by_sensitivity_the_rest_by_size():
    weight, stats = site()
    mask = exact_mask(weight, stats.sensitivity, 90)
    order = stats.sensitivity.flatten().argsort(descending=True)
    sensitive = torch.zeros(weight.numel(), dtype=torch.bool)
    sensitive[order[:10]] = True
    sensitive = sensitive.view(weight.shape)
    assert int(mask.sum()) == 90
    assert bool(mask[sensitive].all())
    assert float(weight[mask & ~sensitive].abs().min()) >= float(weight[~mask].abs().max())


def test_outliers_do_not_pull_the_centroids():
    weight, stats = site()
    weight[:, 5] = 100.0
    error = compress("squeezellm-w2-o5", weight, stats, "float16").to_dense() - weight
    assert float(error.abs().max()) < 3


def test_a_sensitivity_of_another_shape_is_named():
    weight, stats = site()
    with pytest.raises(PlanError, match=r"of shape \(12, 32\)"):
        compress(
            "squeezellm-w2", weight, replace(stats, sensitivity=torch.ones(12, 32)), "float16"
        )


def test_refusals():
    for bits, percent in ((5, 0.0), (1, 0.0), (3, 100.0), (3, -1.0)):
        with pytest.raises(PlanError, match="squeezellm"):
            SqueezeLlmSpec(bits, percent)
