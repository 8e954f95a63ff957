from itertools import combinations

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.stats import Stats
from autocomp.methods.pruning.magnitude import Magnitude, MagnitudeSpec
from autocomp.methods.pruning.wanda import Wanda, WandaSpec
from autocomp.testing.methods import site


def mask(weight, stats, token="wanda-s50"):
    return Wanda().mask(weight, WandaSpec.parse(token), stats)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7])
def test_exact_count_of_every_row(sparsity):
    weight, stats = site()
    keep = Wanda().mask(weight, WandaSpec(sparsity), stats)
    assert bool((keep.sum(dim=1) == 32 - int(32 * sparsity)).all())


@pytest.mark.parametrize("token", ["wanda-s50", "wanda-2:4"])
def test_mask_is_invariant_to_scaling_all_norms(token):
    weight, stats = site()
    scaled = Stats(norms=16 * stats.norms)
    assert torch.equal(mask(weight, stats, token), mask(weight, scaled, token))


def test_metric_is_the_error_of_removing_one_weight():
    """``M_ij²`` is the output error of that removal alone."""
    weight, stats = site()
    change = torch.zeros_like(weight)
    change[2, 5] = -weight[2, 5]
    error = (change @ stats.hessian * change).sum()
    assert torch.allclose(error, (weight[2, 5] * stats.norms[5]) ** 2, rtol=1e-5)


def row_errors(row, hessian):
    """Return the output error of every way to remove four of eight weights, and the masks."""
    errors, masks = [], []
    for gone in combinations(range(8), 4):
        change = torch.zeros(8)
        change[list(gone)] = -row[list(gone)]
        errors.append(float(change @ hessian @ change))
        masks.append(change == 0)
    return torch.tensor(errors), masks


def test_optimal_for_uncorrelated_inputs_only():
    """By brute force over all masks of eight inputs."""
    weight, stats = site(shape=(24, 8))
    correlated_wins = 0
    for row in weight:
        diagonal = torch.diag(stats.hessian.diagonal())
        errors, masks = row_errors(row, diagonal)
        keep = mask(row[None], Stats(norms=diagonal.diagonal().sqrt()))[0]
        assert torch.equal(masks[int(errors.argmin())], keep)
        errors, masks = row_errors(row, stats.hessian)
        correlated_wins += torch.equal(masks[int(errors.argmin())], mask(row[None], stats)[0])
    assert correlated_wins < len(weight)


def test_pattern_with_unit_norms_is_magnitude():
    weight = site()[0]
    found = mask(weight, Stats(norms=torch.ones(32)), "wanda-2:4")
    assert torch.equal(found, Magnitude().mask(weight, MagnitudeSpec(keep=2, m=4), None))


def test_pattern_depends_only_on_ratios_within_a_group():
    weight, stats = site()
    factors = torch.tensor([1.0, 8.0, 0.25, 64.0, 2.0, 0.5, 4.0, 16.0]).repeat_interleave(4)
    scaled = Stats(norms=stats.norms * factors)
    assert torch.equal(mask(weight, stats, "wanda-2:4"), mask(weight, scaled, "wanda-2:4"))
    assert not torch.equal(mask(weight, stats), mask(weight, scaled))


def bisected(score, sparsity):
    """Return the keep-mask that the published bisection of α comes to."""
    ordered, index = score.double().sort(dim=1, stable=True)
    reached, total = ordered.cumsum(dim=1), score.double().sum(dim=1, keepdim=True)
    low, high = 0.0, 1.0
    for _ in range(60):
        alpha = (low + high) / 2
        gone = reached <= alpha * total
        low, high = (low, alpha) if gone.double().mean() > sparsity else (alpha, high)
    keep = torch.ones_like(score, dtype=torch.bool)
    return keep.scatter(1, index, ~(reached <= low * total))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_variant_takes_one_share_of_every_rows_sum(sparsity):
    weight, stats = site()
    weight = weight.abs() ** torch.linspace(0.2, 3, len(weight))[:, None] * weight.sign()
    spec = WandaSpec(sparsity, variant=True)
    keep = Wanda().mask(weight, spec, stats)
    assert int((~keep).sum()) == int(weight.numel() * sparsity)
    assert torch.equal(keep, bisected(weight.abs() * stats.norms, sparsity))
    assert len(keep.sum(dim=1).unique()) > 4, "rows differ"


def test_variant_drops_what_costs_nothing_first():
    weight, stats = site()
    weight[0] = 0
    weight[:, 5] = 0
    keep = mask(weight, stats, "wanda-s10-variant")
    assert not keep[0].any()
    assert not keep[:, 5].any()


def test_variant_is_for_a_sparsity():
    assert WandaSpec.parse("wanda-s62.5-variant").token() == "wanda-s62.5-variant"
    with pytest.raises(PlanError, match="not for 2:4"):
        WandaSpec.parse("wanda-2:4-variant")
