"""Factorisations beside the authors' code."""

import pytest
import torch

from autocomp.methods.low_rank.lplr import second_factor


def test_asvd_is_theirs_with_an_exact_decomposition(layer, official):
    """And loses less than with the randomised one of exactly as many columns."""
    rank = int(torch.linalg.matrix_rank(official["exact"], atol=1e-4))
    assert rank == layer.weight.numel() // 2 // sum(layer.weight.shape)
    ours = layer.made(f"asvd-r{rank}")
    size = float(layer.weight.norm())
    assert float((ours - official["exact"]).norm()) < 2e-3 * size
    assert layer.ratio(f"asvd-r{rank}", official["exact_loss"]) == pytest.approx(1, abs=1e-3)
    assert layer.ratio(f"asvd-r{rank}", official["usual_loss"]) < 1


def test_laser_is_theirs_with_an_exact_decomposition(layer, official):
    ours = layer.made("laser-k25")
    size = float(layer.weight.norm())
    assert float((ours - official["exact"]).norm()) < 2e-3 * size
    assert layer.distance_ratio("laser-k25", official["usual_loss"]) < 1


def test_lplr_fits_the_second_factor_alike(layer, official):
    """To their rounded sketch; what is left is the rounding of the second factor."""
    left, right = official["left"], official["right"]
    step = float(right.max() - right.min()) / 255
    change = (second_factor(left, layer.weight) - right).abs().max()
    assert float(change) < 0.501 * step


def test_lplr_loses_no_more(layer, official):
    """Ours sketches from either side and takes the better."""
    assert 0.85 < layer.distance_ratio("lplr-r12-w8t", official["loss"]) < 1.02
