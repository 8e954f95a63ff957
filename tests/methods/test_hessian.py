import pytest
import torch

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.stats import Stats
from autocomp.methods._hessian import cholesky, require
from autocomp.testing.methods import site


def test_factor_of_the_damped_matrix():
    hessian = site()[1].hessian.double()
    factor = cholesky(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(
        len(hessian), dtype=torch.float64
    )
    assert torch.allclose(factor @ factor.T, damped, rtol=1e-12, atol=1e-12)


def test_first_damping_is_tried_alone():
    hessian = site()[1].hessian.double()
    factor = cholesky(hessian, 0.01, first=0.0)
    assert torch.allclose(factor @ factor.T, hessian, rtol=1e-12, atol=1e-12)


def test_damping_is_raised_until_it_holds():
    matrix = torch.diag(torch.tensor([4.0, 3.0, -0.5], dtype=torch.float64))
    factor = cholesky(matrix, 0.01)  # 0.01 and 0.1 leave it indefinite, 1 does not
    added = (factor @ factor.T - matrix).diagonal()
    assert torch.allclose(added, torch.full((3,), 6.5 / 3, dtype=torch.float64))


def test_hopeless_matrices_are_refused():
    eye = torch.eye(3, dtype=torch.float64)
    with pytest.raises(NumericalError, match="positive definite"):
        cholesky(-eye, 0.01)
    eye[1, 1] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        cholesky(eye, 0.01)


def test_all_zero_second_moments_still_have_a_factor():
    factor = cholesky(torch.zeros(3, 3, dtype=torch.float64), 0.01)
    assert torch.allclose(factor, 0.1 * torch.eye(3, dtype=torch.float64))


def test_missing_statistics_are_named():
    with pytest.raises(PlanError, match="gptq needs the calibration statistic 'hessian'"):
        require(Stats(), "hessian", "gptq", 4)
    with pytest.raises(PlanError, match="has 4 inputs, the weight 5"):
        require(Stats(norms=torch.ones(4)), "norms", "wanda", 5)
