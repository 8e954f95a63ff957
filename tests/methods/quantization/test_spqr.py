import json
from pathlib import Path

import pytest
import torch

from autocomp.core.errors import UnsupportedError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import within
from autocomp.methods._column_solver import ColumnFactor, solve_columns
from autocomp.methods.compose import compress, layout
from autocomp.methods.quantization import spqr
from autocomp.methods.quantization.spqr import SpqrSpec, outlier_mask
from autocomp.testing.methods import output_error, site

REFERENCE = json.loads(Path(__file__).with_name("spqr_reference.json").read_text())


def spiked(seed):
    """Return a weight (32, 64) half a percent of which is twelve times larger, and statistics."""
    weight, stats = site(seed, (32, 64))
    generator = torch.Generator().manual_seed(seed + 100)
    return weight * (1 + 11 * (torch.rand(32, 64, generator=generator) < 0.005)), stats


def mean_error(token, seeds=3):
    total = 0.0
    for seed in range(seeds):
        weight, stats = spiked(seed)
        made = compress(weight, LayerSpec.parse(token), stats, "float16")
        total += output_error(weight, made.to_dense(), stats)
    return total / seeds


def test_without_outliers_and_rounded_statistics_it_is_gptq_with_real_zero_points():
    """The loop of the GPTQ paper over groups of 16, in fp64."""
    weight, stats = site(shape=(24, 48))
    weight, hessian = weight.double(), stats.hessian.double()
    grid = spqr._spanned(weight, torch.ones_like(weight, dtype=torch.bool), SpqrSpec(3))
    factor = ColumnFactor.of(hessian, act_order=False, dtype=torch.float64)
    solved = solve_columns(weight, factor, grid=grid)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(48, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    work, expected = weight.clone(), torch.empty_like(weight)
    for column in range(48):
        scale, zero = grid.scale[:, column // 16], grid.zero[:, column // 16]
        code = (work[:, column] / scale + zero).round().clamp(0, 7)
        assert torch.equal(code, solved.codes[:, column].double())
        expected[:, column] = scale * (code - zero)
        error = (work[:, column] - expected[:, column]) / upper[column, column]
        work[:, column:] -= error[:, None] * upper[column, column:]
    assert torch.allclose(solved.weight, expected, rtol=0, atol=1e-12)


def test_outliers_are_those_whose_leaving_helps_their_group_most():
    """By brute force: every weight left out in turn."""
    weight, stats = site(3, (4, 32))
    factor = ColumnFactor.shared(stats, True, "spqr", 32)
    pivots = torch.empty(32)
    pivots[factor.order] = factor.pivots
    spec = SpqrSpec(3)
    found = spqr._gain(weight, torch.zeros(4, 32, dtype=torch.bool), pivots, spec)

    def loss(keep):
        error = (spqr._spanned(weight, keep, spec).nearest(weight) - weight) / pivots
        return float((error.square() * keep).double().sum())

    everything = torch.ones(4, 32, dtype=torch.bool)
    for row, column in ((0, 0), (1, 17), (3, 31), divmod(int(weight.argmax()), 32)):
        keep = everything.clone()
        keep[row, column] = False
        assert float(found[row, column]) == pytest.approx(loss(everything) - loss(keep), rel=1e-3)


def test_the_count_is_exact_and_nested():
    weight, stats = spiked(0)
    factor = ColumnFactor.shared(stats, True, "spqr", 64)
    for rate, count in ((0.0, 0), (0.001, 2), (0.05, 102), (0.9, 1843)):
        mask = outlier_mask(weight, factor, SpqrSpec(3, outliers=rate))
        assert int(mask.sum()) == count


def test_large_weights_are_outliers_and_come_back_exactly():
    weight, stats = spiked(1)
    made = compress(weight, LayerSpec.parse("spqr-w3-o2"), Stats(hessian=torch.eye(64)), "float16")
    mask = made.layout.correction.marked(within(made.tensors, "correction"))
    large = weight.abs() > 6 * weight.abs().median()
    assert bool(large.any())
    assert bool(mask[large].all())
    # without feedback an outlier is the weight itself, up to float16
    assert torch.allclose(made.to_dense()[mask], weight[mask], rtol=2e-3, atol=1e-4)
    assert stats.hessian is not None


def test_more_outliers_less_error():
    """The sweep of the specification, by rates instead of thresholds."""
    ratios = [
        mean_error(f"spqr-w3-o{percent}") / mean_error("spqr-w3") for percent in (0.34, 1.8, 8)
    ]
    assert ratios[0] < 0.85
    assert ratios[1] < 0.65
    assert ratios[2] < 0.40
    assert mean_error("spqr-w3-o99.9") < 0.02 * mean_error("spqr-w3")


def test_every_bit_is_counted():
    """``b + 6/16 + 4·16/256`` bits, 32 an outlier, 32 a row pointer."""
    found = layout(LayerSpec.parse("spqr-w3-o1"), (64, 256), "float16")
    outliers = 64 * 256 // 100
    assert 8 * found.nbytes == 3.625 * 64 * 256 + 32 * outliers + 32 * 65


def test_it_beats_a_float16_scale_a_group_at_fewer_bits():
    """Groups of 16 for the price of groups of 51."""
    plain = mean_error("gptq-w3g32")
    assert mean_error("spqr-w3") < plain
    small, large = (
        layout(LayerSpec.parse(token), (64, 256), "float16").nbytes
        for token in ("spqr-w3", "gptq-w3g16")
    )
    assert small < 0.9 * large


def test_no_mask_beside_it():
    with pytest.raises(UnsupportedError, match="plain uniform grids"):
        layout(LayerSpec.parse("wanda-s50+spqr-w3"), (32, 64), "float16")


def formula_site():
    """The weight and second moments that the official code was run on."""
    row, column = torch.arange(32).double()[:, None], torch.arange(64).double()[None]
    spikes = 1 + 7 * ((row * 64 + column) % 97 == 0)
    weight = 0.2 * torch.sin(1.7 * row + 0.9 * column**2 + 0.3 * row * column) ** 3 * spikes
    time, wave = torch.arange(512).double()[:, None], torch.arange(16).double()[None]
    inputs = torch.sin(0.37 * time * (wave + 1) + wave**2) @ torch.cos(
        0.61 * (wave.T + 1) * (column + 1) + 0.2 * column
    )
    inputs += 0.3 * torch.sin(1.3 * time**2 + 2.1 * column * time + column)
    inputs *= 1 + 2 * torch.cos(column) ** 2
    hessian = (inputs.T @ inputs / 512).float()
    return weight.float(), Stats(hessian=hessian, norms=hessian.diagonal().sqrt())


@pytest.mark.parametrize(
    ("order", "prefix", "allowed"), [("identity", "", 1.0), ("act_order", "actorder+", 1.25)]
)
def test_losses_beside_those_of_the_authors(order, prefix, allowed):
    """At their numbers of outliers, which their threshold finds as it goes and ours beforehand.

    Without a permutation our columns are still visited in act-order; with one, what feedback has
    changed decides over there which weights are outliers, and 64 inputs have few groups.
    """
    weight, stats = formula_site()
    for _, count, loss in REFERENCE[order]:
        outliers = f"-o{100 * count / weight.numel():.8g}" if count else ""
        spec = LayerSpec.parse(f"{prefix}spqr-w3{outliers}")
        found = compress(weight, spec, stats, "float16")
        assert output_error(weight, found.to_dense(), stats) <= allowed * loss, count
