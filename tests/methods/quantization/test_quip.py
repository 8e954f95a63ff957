import pytest
import torch

from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.steps import Rotation
from autocomp.methods._column_solver import ColumnFactor, solve_columns
from autocomp.methods._uniform import AffineGrid
from autocomp.methods.compose import compress, fit_input, layout
from autocomp.methods.quantization.quip import Quip, QuipSpec, improved
from autocomp.testing.methods import output_error, site


def double_site(seed=0):
    weight, stats = site(seed)
    hessian = stats.hessian.double()
    return weight.double(), hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32).double()


def unit_triangular(hessian):
    """Return L and D of ``H = L D Lᵀ``, L unit lower triangular."""
    lower = torch.linalg.cholesky(hessian)
    return lower / lower.diagonal(), lower.diagonal().square()


def ldlq(weight, hessian, grid):
    """The paper's loop, last column first: values and what each rounding lost."""
    lower, _ = unit_triangular(hessian)
    rounded, lost = torch.zeros_like(weight), torch.zeros_like(weight)
    scale, zero = grid.scale[:, 0].double(), grid.zero[:, 0].double()
    for column in reversed(range(weight.shape[1])):
        later = slice(column + 1, None)
        fed = weight[:, column] + (weight - rounded)[:, later] @ lower[later, column]
        codes = (fed / scale + zero).round().clamp(0, grid.levels)
        rounded[:, column] = scale * (codes - zero)
        lost[:, column] = fed - rounded[:, column]
    return rounded, lost


def undamped(hessian):
    """The factor of a matrix that is damped already."""
    more = 0.01 * hessian.diagonal().mean() / 1.01
    return ColumnFactor.of(hessian - more * torch.eye(32).double(), False, torch.float64)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_ldlq_is_gptq(bits):
    """Last to first is first to last of the flipped weight."""
    weight, hessian = double_site()
    grid = Quip().grid(weight, QuipSpec(bits))
    expected, _ = ldlq(weight, hessian, grid)
    solved = solve_columns(weight.flip(1), undamped(hessian.flip(0, 1)), grid=grid)
    assert torch.allclose(solved.weight.flip(1), expected, rtol=0, atol=1e-12)


def test_the_loss_is_that_of_the_roundings_where_nothing_clamps():
    """``tr((ŵ − w) H (ŵ − w)ᵀ) = tr(E D Eᵀ)``."""
    weight, hessian = double_site()
    wide = AffineGrid(torch.full((24, 1), 0.5), torch.full((24, 1), 127.5), 8)
    rounded, lost = ldlq(weight, hessian, wide)
    _, pivots = unit_triangular(hessian)
    change = rounded - weight
    loss = float((change @ hessian * change).sum())
    assert loss == pytest.approx(float((lost.square() * pivots).sum()), rel=1e-9)
    solved = solve_columns(weight.flip(1), undamped(hessian.flip(0, 1)), grid=wide)
    assert 2 * solved.loss == pytest.approx(loss, rel=1e-9)


def test_a_diagonal_second_moment_gives_the_nearest_points():
    weight, stats = site()
    diagonal = Stats(hessian=torch.diag(stats.hessian.diagonal()))
    for token in ("quip-w2", "quip-w3-p2"):
        spec = LayerSpec.parse(token)
        found = compress(weight, spec, diagonal, "float16").to_dense()
        nearest = Quip().grid(weight, spec.quantizer).nearest(weight)
        assert torch.allclose(found, nearest, rtol=0, atol=1e-6)


def test_the_grid_ends_at_2_4_times_the_root_mean_square():
    weight = site()[0]
    for bits in (2, 4):
        grid = Quip().grid(weight, QuipSpec(bits))
        end = (grid.scale.float() * (grid.levels - grid.zero))[:, 0]
        assert torch.allclose(end, 2.4 * weight.square().mean(dim=1).sqrt(), rtol=1e-3)


def test_a_greedy_pass_never_loses():
    for seed in range(3):
        weight, hessian = double_site(seed)
        grid = Quip().grid(weight, QuipSpec(2))
        damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(32).double()
        codes = (weight / grid.scale.double() + grid.zero).round().clamp(0, 3).to(torch.uint8)
        losses = []
        for passes in range(4):
            moments = hessian, torch.arange(32)
            found = improved(weight, codes, grid, moments, passes).double()
            change = grid.scale.double() * (found - grid.zero) - weight
            losses.append(float((change @ damped * change).sum()))
        assert losses == sorted(losses, reverse=True)
        assert losses[1] < 0.9 * losses[0]


def test_a_rotation_pays_for_a_spiked_weight():
    """One column thirty times the others: the grid of a row holds it only when it is spread."""
    plain = turned = 0.0
    for seed in range(3):
        weight, stats = site(seed)
        weight[:, 5] *= 30
        for name in ("quip-w2", "rotation-hadamard+quip-w2"):
            found = compress(weight, LayerSpec.parse(name), stats, "float16").to_dense()
            error = output_error(weight, found, stats)
            plain, turned = (plain + error, turned) if name[0] == "q" else (plain, turned + error)
    assert turned < 0.5 * plain


def test_a_rotation_changes_neither_outputs_nor_losses():
    weight, hessian = double_site()
    for kind in ("hadamard", "orthogonal"):
        step = Rotation(32, kind)
        turned, change = step.absorb(weight, {}), 0.1 * weight.roll(1, 0)
        moments = step.absorb(step.absorb(hessian, {}).T, {})
        inputs = weight[:5]
        assert torch.allclose(
            step.absorb(inputs, {}) @ turned.T, inputs @ weight.T, rtol=0, atol=1e-12
        )
        moved = step.absorb(change, {})
        assert float((moved @ moments * moved).sum()) == pytest.approx(
            float((change @ hessian * change).sum()), rel=1e-12
        )


def test_every_side_is_counted():
    """A scale a row; with the output side turned one of all, and two bytes an input rescaled."""
    codes = 24 * 32 * 2 // 8
    for token, sides in (
        ("rotation-hadamard+quip-w2", 2 * 24),
        ("rotation-hadamard+quip-w2-orthogonal", 2),
        ("rotation-hadamard-rescaled+quip-w2-orthogonal", 2 + 2 * 32),
    ):
        assert layout(LayerSpec.parse(token), (24, 32), "float16").nbytes == codes + sides


def test_turning_the_output_side_lets_all_rows_have_one_scale():
    """One row ten times the others: mixed with them it fits the grid that would cut it off."""
    weight, stats = site()
    weight[3] *= 10
    found = compress(weight, LayerSpec.parse("quip-w4-orthogonal"), stats, "float16")
    assert found.tensors["scale"].shape == (1, 1)
    turned = found.layout.turn(weight)
    assert torch.allclose(found.layout.back(turned), weight, rtol=0, atol=1e-4)
    grid = AffineGrid(found.tensors["scale"].expand(24, 1), torch.full((24, 1), 7.5), 4)
    factor = ColumnFactor.shared(stats, True, "quip", 32)
    alone = solve_columns(weight, factor, grid=grid).weight
    error, cut = (output_error(weight, made, stats) for made in (found.to_dense(), alone))
    assert error < 0.5 * cut


def test_rescaling_evens_out_input_and_weight():
    """``s² = ‖x_j‖/‖W_j‖``: behind it a channel is as large in the one as in the other."""
    weight, stats = site()
    spec = LayerSpec.parse("rotation-full-rescaled+quip-w2")
    scale = fit_input([weight], [spec], stats)["scale"].double()
    inputs, columns = stats.norms / scale, weight.norm(dim=0) * scale
    ratio = (inputs / columns).double()
    assert torch.allclose(ratio, ratio.mean().expand(32), rtol=5e-3)
