"""Weight-only quantizers beside the authors' code; what differs is pinned and explained."""

from dataclasses import replace

import pytest
import torch

from autocomp.core.spec import LayerSpec, UniformSpec
from autocomp.core.stats import Stats
from autocomp.methods._column_solver import ColumnFactor, solve_columns
from autocomp.methods._uniform import AffineGrid
from autocomp.methods.compose import fit_input
from autocomp.methods.quantization.owq import weak_columns
from autocomp.methods.quantization.squeezellm import exact_mask


def close(found, expected):
    """Equal but for the last bits of fp32: every code is the same."""
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_gptq_rounds_every_weight_alike(layer, official):
    """On grids as theirs, whose scales are fp32."""
    factor = ColumnFactor.of(layer.hessian, act_order=True)
    solved = solve_columns(layer.weight, factor, grid=layer.grid(3, 16))
    assert close(solved.weight, official["static"])
    order = factor.order
    turned = ColumnFactor.of(layer.hessian[order][:, order], act_order=False)
    grid = layer.grid(3, 16, order)
    solved = solve_columns(layer.weight[:, order].contiguous(), turned, grid=grid)
    assert close(solved.weight, official["permuted"][:, order])
    rows = len(layer.weight)
    grid = AffineGrid(official["clipped_scale"], torch.full((rows, 1), 4.0), 3)
    natural = ColumnFactor.of(layer.hessian, act_order=False)
    assert close(solve_columns(layer.weight, natural, grid=grid).weight, official["clipped"])


def test_gptq_with_scales_of_float16_loses_as_much(layer, official):
    assert layer.ratio("gptq-w3g16", official["static_loss"]) < 1.02
    assert layer.ratio("actorder+gptq-w3g16", official["permuted_loss"]) < 1.05


def test_gptq_clips_as_far(layer, official):
    """Errors are compared on the rounded scale, so a few rows stop a step or two elsewhere."""
    scale = AffineGrid.fit(layer.weight, UniformSpec(3, symmetric=True, mse=True)).scale.float()
    ratio = scale / official["clipped_scale"]
    assert bool((ratio.log().abs() < 0.02).all())
    rounded_up = (ratio >= 1) & (ratio < 1 + 2**-10)
    assert int(rounded_up.sum()) >= 0.9 * len(scale)


def test_gptaq_makes_up_for_more(layer, official):
    """Theirs weighs by a quarter what ours corrects in full, see ``_two_streams``."""
    inputs, other = layer.inputs, (4 * layer.inputs).round() / 4
    one = Stats(hessian=other.T @ other / len(other))
    two = replace(one, drift=(inputs - other).T @ other / len(other), derived={})

    def lost(stats):
        made = [(w, layer.made("gptq-w3g16", w, stats)) for w in layer.rolled()]
        changes = [other @ dense.T - inputs @ weight.T for weight, dense in made]
        return sum(float(change.square().sum(1).mean()) for change in changes)

    assert lost(two) < float(official["static_loss"].sum()) < lost(one)


def quip_grid(weight):
    """One grid of ``± 2.4 · RMS`` for all rows, its scale fp32, and where it ends."""
    end = 2.4 * weight.square().mean().sqrt()
    rows = (len(weight), 1)
    return AffineGrid((2 * end / 3).expand(rows), torch.full(rows, 1.5), 2), end


def test_quip_rounds_every_weight_alike(layer, official):
    """LDLQ from the smallest diagonal of H backwards is the column solver in act-order."""
    grid, end = quip_grid(layer.weight)
    factor = ColumnFactor.of(layer.hessian, act_order=True)
    solved = solve_columns(layer.weight.clamp(-end, end), factor, grid=grid)
    assert close(solved.weight, official["ldlq"])


def test_quip_does_not_cut_weights_off_before_it_rounds(layer, official):
    """Theirs does, so that no later column learns what was cut off; the paper says clamp codes."""
    grid, _ = quip_grid(layer.weight)
    factor = ColumnFactor.of(layer.hessian, act_order=True)
    told = layer.error(solve_columns(layer.weight, factor, grid=grid).weight)
    assert told < 0.7 * layer.error(official["ldlq"])
    # with a scale a row besides
    assert layer.ratio("quip-w2", official["ldlq_loss"]) < 0.5
    assert layer.ratio("quip-w2-p2", official["greedy_loss"]) < 0.5


def test_quip_behind_their_rotation(layer, official):
    """Rescaled, normalised and damped, turned on both sides, rounded, and turned back."""
    left, right, scale = (official[name] for name in ("left", "right", "scale"))
    inputs = len(layer.hessian)
    hessian = layer.hessian / scale / scale[:, None]
    hessian = hessian * (inputs / hessian.trace()) + 0.01 * torch.eye(inputs)
    turned = left @ (layer.weight * scale) @ right.T
    grid, end = quip_grid(turned)
    factor = ColumnFactor.of(right @ hessian @ right.T, act_order=True)
    solved = solve_columns(turned.clamp(-end, end), factor, grid=grid).weight
    assert close(left.T @ solved @ right / scale, official["whole"])
    spec = LayerSpec.parse("rotation-orthogonal-rescaled+quip-w2-orthogonal")
    ours = fit_input([layer.weight], [spec], layer.stats)["scale"].float()
    ratio = ours / scale
    assert torch.allclose(ratio, ratio.mean().expand(inputs), rtol=1e-3)
    whole = "rotation-orthogonal-rescaled+quip-w2-orthogonal"
    assert layer.ratio(whole, official["whole_loss"]) < 1.02


def test_awq_scales_and_clips_alike(layer, official):
    spec = LayerSpec.parse("awq+rtn-w3g16")
    scale = fit_input([layer.weight], [spec], layer.stats)["scale"].float()
    assert torch.allclose(scale, official["scale"], rtol=1e-3)
    groups = layer.weight.view(len(layer.weight), -1, 16)
    cut = official["clip"][..., None]
    low, high = groups.clamp(-cut, cut).aminmax(dim=-1)
    theirs = AffineGrid((high - low) / 7, (-low / ((high - low) / 7)).round().clamp(0, 7), 3)
    ours = AffineGrid.fit(layer.weight, UniformSpec(3, 16, clip=True), layer.stats)
    inputs = layer.inputs.view(len(layer.inputs), -1, 16)

    def lost(grid):
        change = (grid.nearest(layer.weight) - layer.weight).view_as(groups)
        return torch.einsum("tgi,ogi->tog", inputs, change).square().sum(0)

    # a range cut alike on both sides has its zero between two codes, where float16 decides
    assert float((lost(ours) / lost(theirs)).median()) == pytest.approx(1, abs=1e-2)
    assert float(lost(ours).sum()) < 1.02 * float(lost(theirs).sum())


def test_owq_keeps_the_same_columns_and_rounds_alike(layer, official):
    """On their grids, left to right."""
    spec = LayerSpec.parse("owq-w3-t3.8125").quantizer
    grid = AffineGrid.fit(layer.weight, spec)
    weak = weak_columns(layer.weight, layer.hessian, grid, spec)
    assert torch.equal(weak.nonzero()[:, 0], official["columns"].long())
    grid = AffineGrid(official["grid_scale"], official["grid_zero"], 3)
    factor = ColumnFactor.of(layer.hessian, act_order=False, last=weak)
    solved = solve_columns(layer.weight, factor, grid=grid, spare=weak.expand_as(layer.weight))
    assert close(solved.weight, official["natural"])


def test_owq_in_act_order_loses_less(layer, official):
    """Theirs orders columns by what rounding them loses, ours by ``diag H``."""
    assert layer.ratio("owq-w3-t3.8125", official["act_order_loss"]) < 1
    assert layer.ratio("owq-w3-t3.8125", official["natural_loss"]) < 0.9


@pytest.mark.parametrize("name", ["plain", "outliers"])
def test_spqr_rounds_every_weight_alike(layer, official, name):
    """On their grids and with their outliers, which lose nothing."""
    scale, zero, mask = (official[f"{name}_{side}"] for side in ("scale", "zero", "mask"))
    factor = ColumnFactor.of(layer.hessian, act_order=False)
    solved = solve_columns(layer.weight, factor, grid=AffineGrid(scale, zero, 3), spare=mask)
    assert close(solved.weight, official[f"{name}_weight"])
    share = f"-o{100 * float(mask.float().mean()):.8g}" if name == "outliers" else ""
    assert layer.ratio(f"spqr-w3{share}", official[f"{name}_weight_loss"]) < 0.8


def test_squeezellm_leaves_out_the_same_weights(layer, official):
    mask = exact_mask(layer.weight, layer.stats.sensitivity, 90)
    assert torch.equal(mask, official["exact"])
    assert int(official["large"].sum()) == 80


def test_squeezellm_finds_centroids_at_least_as_good(layer, official):
    """In every row: scikit-learn's are a local optimum, ours the best; theirs is not rounded."""
    theirs = official["centroids"].gather(1, official["labels"].long())
    ours = layer.made("squeezellm-w3")

    def lost(dense):
        return (layer.stats.sensitivity * (dense - layer.weight).square()).sum(1)

    assert bool((lost(ours) < 1.001 * lost(theirs)).all())
    assert float(lost(ours).sum()) > 0.5 * float(lost(theirs).sum())


def test_lutgemm_alternates_alike(layer, official):
    """In most groups it ends where theirs does; in some either is caught in a poorer optimum."""
    ours = layer.made("lutgemm-w3g16")
    shape = (len(layer.weight), -1, 16)
    distance = (ours - official["weight"]).abs().view(shape).amax(-1)
    assert float((distance < 2e-3).float().mean()) > 0.5
    assert layer.distance_ratio("lutgemm-w3g16", official["loss"]) < 1.1
