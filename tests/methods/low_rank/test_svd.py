import pytest
import torch

from autocomp.methods.low_rank.svd import Svd, SvdSpec
from autocomp.testing.methods import compress, site

SHAPES = [(24, 40), (40, 24), (24, 24)]


def product(weight, rank, stats=None):
    left, right = Svd().factors(weight.double(), SvdSpec(rank=rank), stats)
    return left @ right


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 8, 23, 24])
def test_is_the_truncated_svd(shape, rank):
    """Product, tail energy, and the weight itself at full rank."""
    weight = site(shape=shape)[0].double()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    found = product(weight, rank)
    assert torch.allclose(found, expected, atol=1e-10)
    assert float((found - weight).square().sum()) == pytest.approx(
        float(values[rank:].square().sum()), rel=1e-9, abs=1e-18
    )


def test_better_than_random_projections():
    """Optimal among rank k."""
    weight = site()[0].double()
    best = float((product(weight, 8) - weight).norm())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        random = torch.randn((24, 8), generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(random).Q
        assert best < float((basis @ basis.T @ weight - weight).norm())


def test_scale_is_split_evenly():
    """``A = U √S``, ``B = √S Vᵀ``."""
    weight = site()[0]
    left, right = Svd().factors(weight, SvdSpec(rank=8), None)
    values = torch.linalg.svdvals(weight)[:8]
    assert torch.allclose(left.norm(dim=0).square(), values, rtol=1e-5)
    assert torch.allclose(right.norm(dim=1).square(), values, rtol=1e-5)


def test_one_decomposition_serves_every_rank():
    weight, stats = site()
    compress("svd-r8", weight, stats, "float16")
    (key,) = stats.derived
    basis = stats.derived[key]
    compress("svd-r16", weight, stats, "float16")
    assert list(stats.derived) == [key]
    assert stats.derived[key] is basis
    compress("svd-r8", weight + 1, stats, "float16")
    assert len(stats.derived) == 2, "another weight took this one's decomposition"
