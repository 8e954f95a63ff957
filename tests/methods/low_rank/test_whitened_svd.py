import pytest
import torch

from autocomp.core.errors import NumericalError
from autocomp.core.stats import Stats
from autocomp.methods.low_rank.svd import Svd, SvdSpec
from autocomp.methods.low_rank.whitened_svd import WhitenedSvd, WhitenedSvdSpec
from autocomp.testing.methods import output_error, site

SHAPES = [(24, 40), (40, 24), (24, 24)]


def product(weight, rank, stats):
    left, right = WhitenedSvd().factors(weight.double(), WhitenedSvdSpec(rank=rank), stats)
    return left @ right


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 8, 23])
def test_error_is_the_tail_energy(shape, rank):
    weight, stats = site(shape=shape)
    whitener = torch.linalg.cholesky(stats.hessian.double())
    values = torch.linalg.svdvals(weight.double() @ whitener)
    error = output_error(weight, product(weight, rank, stats), stats)
    assert error == pytest.approx(float(values[rank:].square().sum()), rel=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_gives_the_weight(shape):
    weight, stats = site(shape=shape)
    assert torch.allclose(product(weight, 24, stats), weight.double(), atol=1e-7)


def test_projects_outputs_on_their_principal_directions():
    """The same as PCA of the outputs."""
    weight, stats = site()
    outputs = weight.double() @ torch.linalg.cholesky(stats.hessian.double())
    basis = torch.linalg.svd(outputs).U[:, :8]
    expected = basis @ basis.T @ weight.double()
    assert torch.allclose(product(weight, 8, stats), expected, atol=1e-9)


def test_identity_moments_give_svd_and_real_ones_beat_it():
    weight, stats = site()
    plain = torch.matmul(*Svd().factors(weight.double(), SvdSpec(rank=8), None))
    identity = product(weight, 8, Stats(hessian=torch.eye(32)))
    assert torch.allclose(identity, plain, atol=1e-9)
    whitened = output_error(weight, product(weight, 8, stats), stats)
    assert whitened < 0.9 * output_error(weight, plain, stats)


@pytest.mark.parametrize("shape", SHAPES)
def test_few_samples_do_not_blow_factors_up(shape):
    """With fewer samples than inputs H is singular; the factors stay as large as the weight."""
    weight = site(shape=shape)[0]
    inputs = torch.randn((6, shape[1]), generator=torch.Generator().manual_seed(0))
    stats = Stats(hessian=inputs.T @ inputs / 6)
    left, right = WhitenedSvd().factors(weight, WhitenedSvdSpec(rank=8), stats)
    assert output_error(weight, left @ right, stats) < 1e-5 * output_error(weight, 0, stats)
    assert float((left @ right).norm()) <= 1.01 * float(weight.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_nan_in_the_moments_is_refused(shape):
    weight, stats = site(shape=shape)
    stats.hessian[0, 1] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        product(weight, 8, stats)
