import pytest
import torch

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Needs
from autocomp.methods._uniform import AffineGrid
from autocomp.methods.compose import compress, needs
from autocomp.methods.quantization.rtn import RtnSpec
from autocomp.testing.methods import output_error, site


def weight(seed=0, shape=(16, 24)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decode(grid, codes):
    rows, columns = codes.shape
    grouped = codes.view(rows, grid.scale.shape[1], -1).float()
    return ((grouped - grid.zero[..., None]) * grid.scale[..., None].float()).view(rows, columns)


def test_asymmetric_grid_spans_each_group():
    matrix = weight()
    grid = AffineGrid.fit(matrix, RtnSpec(4, 8))
    groups = matrix.view(16, 3, 8)
    span = groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)
    assert torch.allclose(grid.scale.float(), span / 15, rtol=2**-10)
    assert bool((grid.scale.float() >= span / 15).all()), "rounded down"
    assert torch.equal(
        grid.zero.float(), torch.round(-groups.amin(-1).clamp(max=0) / grid.scale.float())
    )


def test_symmetric_grid_has_its_zero_in_the_middle():
    matrix = weight().abs()  # one-signed rows are mirrored too
    grid = AffineGrid.fit(matrix, RtnSpec(3, symmetric=True))
    assert bool((grid.zero == 4).all())
    largest = 2 * matrix.abs().amax(dim=1, keepdim=True) / 7
    assert torch.allclose(grid.scale.float(), largest, rtol=2**-10)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_zero_is_forced_into_a_one_signed_range(sign):
    matrix = sign * (weight().abs() + 3)
    grid = AffineGrid.fit(matrix, RtnSpec(4))
    zeros = grid.codes(torch.zeros_like(matrix))
    assert bool((decode(grid, zeros) == 0).all())
    assert bool((grid.zero == (0 if sign > 0 else 15)).all())


def test_empty_groups_span_one():
    grid = AffineGrid.fit(torch.zeros(2, 4), RtnSpec(2))
    assert torch.allclose(grid.scale.float(), torch.full((2, 1), 2 / 3), rtol=2**-10)
    assert bool((decode(grid, grid.codes(torch.zeros(2, 4))) == 0).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_fit_the_bits(bits):
    grid = AffineGrid.fit(weight(), RtnSpec(bits))
    codes = grid.codes(100 * weight(1))
    assert codes.dtype == torch.uint8
    assert int(codes.min()) == 0
    assert int(codes.max()) == 2**bits - 1


def test_halves_round_to_even():
    grid = AffineGrid(torch.ones(1, 1).half(), torch.full((1, 1), 2, dtype=torch.uint8), 3)
    codes = grid.codes(torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]]))
    assert codes.tolist() == [[2, 4, 4, 2, 0]]


def test_clipping_minimises_the_stated_error():
    matrix = weight(3, (8, 48))
    matrix[:, 0] *= 8  # an outlier that is worth clipping
    spec = RtnSpec(3, 16, mse=True)
    clipped = AffineGrid.fit(matrix, spec)

    def error(grid):
        change = (decode(grid, grid.codes(matrix)) - matrix).view(8, 3, 16)
        return change.abs().pow(2.4).sum(-1)

    groups = matrix.view(8, 3, 16)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    best = torch.full((8, 3), torch.inf)
    for step in range(80):  # the definition, one candidate after another
        shrunk = torch.stack([low, high], dim=-1) * (1 - step / 100)
        best = torch.minimum(best, error(AffineGrid.fit(shrunk.view(8, 6), RtnSpec(3, 2))))
    assert torch.allclose(error(clipped), best, rtol=1e-5)
    plain = error(AffineGrid.fit(matrix, RtnSpec(3, 16)))
    assert bool((error(clipped) <= plain).all())
    assert float((error(clipped) < plain).float().mean()) > 0.5


def test_tiny_and_huge_scales():
    tiny = AffineGrid.fit(1e-9 * weight(), RtnSpec(4))
    assert float(tiny.scale.min()) > 0
    with pytest.raises(NumericalError, match="does not fit float16"):
        AffineGrid.fit(1e8 * weight(), RtnSpec(4))


@pytest.mark.parametrize("symmetric", [False, True])
def test_output_clipping_minimises_the_stated_error(symmetric):
    """What each group adds to the output by itself, cut at max · (1 − i/20) for i < 10."""
    matrix, stats = site()
    matrix[:, ::7] *= 6  # outliers that are worth clipping
    spec = RtnSpec(3, 8, symmetric)

    def error(grid):
        change = (decode(grid, grid.codes(matrix)) - matrix).view(24, 4, 8)
        blocks = torch.stack([stats.hessian[i : i + 8, i : i + 8] for i in range(0, 32, 8)])
        return torch.einsum("rgi,gij,rgj->rg", change, blocks, change)

    best = torch.full((24, 4), torch.inf)
    largest = matrix.view(24, 4, 8).abs().amax(dim=2, keepdim=True)
    for step in range(10):  # the definition, one candidate after another
        bound = largest * (1 - step / 20)
        cut = matrix.view(24, 4, 8).clamp(-bound, bound).view(24, 32)
        best = torch.minimum(best, error(AffineGrid.fit(cut, spec)))
    clipped = AffineGrid.fit(matrix, RtnSpec(3, 8, symmetric, clip=True), stats)
    assert torch.allclose(error(clipped), best, rtol=1e-4)
    plain = error(AffineGrid.fit(matrix, spec))
    assert float(best.sum()) < 0.9 * float(plain.sum())


@pytest.mark.parametrize("token", ["rtn-w3g8", "svd-r16+rtn-w3g8", "wsvd-r16+gptq-w3"])
def test_output_clipping_pays(token):
    """On average over seeds; no theorem where errors move on into later columns."""
    errors = {"": 0.0, "-clip": 0.0}
    for seed in range(5):
        matrix, stats = site(seed)
        matrix[:, ::7] *= 6
        for flag in errors:
            dense = compress(matrix, LayerSpec.parse(token + flag), stats, "float16").to_dense()
            errors[flag] += output_error(matrix, dense, stats)
    assert errors["-clip"] < errors[""]


def test_output_clipping_needs_second_moments_and_still_rounds_to_nearest():
    clipped, masked = (
        LayerSpec.parse(t) for t in ("rtn-w4g8-clip", "magnitude-s50+rtn-w4g8-clip")
    )
    assert needs(clipped) == needs(masked) == {Needs.HESSIAN}
    assert needs(LayerSpec.parse("rtn-w4g8")) == frozenset()
    matrix, stats = site()
    with pytest.raises(PlanError, match="rtn-w4g8-clip needs the calibration statistic 'hessian'"):
        compress(matrix, clipped, None, "float16")
    dense = compress(matrix, masked, stats, "float16").to_dense()
    kept = dense != 0
    grid = AffineGrid.fit(matrix * kept, masked.quantizer, stats)
    assert torch.equal(dense, grid.nearest(matrix * kept) * kept)


def test_one_way_of_clipping_at_a_time():
    with pytest.raises(PlanError, match="by mse or by clip"):
        LayerSpec.parse("rtn-w4g8-mse-clip")


@pytest.mark.parametrize("bits", [2, 8])
def test_nearest_points_are_what_the_codes_say(bits):
    grid = AffineGrid.fit(weight(), RtnSpec(bits, 8))
    other = 2 * weight(1)
    assert torch.equal(grid.nearest(other), decode(grid, grid.codes(other)))
