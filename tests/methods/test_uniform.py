import pytest
import torch

from autocomp.core.errors import NumericalError
from autocomp.methods._uniform import AffineGrid
from autocomp.methods.quantization.rtn import RtnSpec


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
