"""Scores against brute force and against the KL that they predict."""

from dataclasses import replace

import pytest
import torch

from autocomp.calibrate.stream import EndStatistics
from autocomp.core.stats import Stats
from autocomp.formats.base import Operands
from autocomp.search.scores import (
    embedding_score,
    head_score,
    kronecker_score,
    output_score,
    token_score,
)
from autocomp.testing.methods import compress, site


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_kronecker_score_is_the_quadratic_form_of_the_kronecker_product(generator):
    difference = torch.randn(5, 4, generator=generator)
    x, g = torch.randn(50, 4, generator=generator), torch.randn(50, 5, generator=generator)
    stats = Stats(hessian=x.T @ x / 50, fisher=g.T @ g / 50)
    vector = difference.flatten()
    matrix = torch.kron(stats.fisher, stats.hessian)
    assert kronecker_score(difference, stats) == pytest.approx(
        0.5 * (vector @ matrix @ vector).item(), rel=1e-5
    )


def test_token_score_is_the_mean_squared_directional_change(generator):
    difference = torch.randn(5, 4, generator=generator)
    x, g = torch.randn(50, 4, generator=generator), torch.randn(50, 5, generator=generator)
    expected = sum(0.5 * (g[t] @ difference @ x[t]).item() ** 2 for t in range(50)) / 50
    stats = Stats(sample=x, sample_gradient=g)
    assert token_score(difference, stats) == pytest.approx(expected, rel=1e-5)


def test_both_scores_agree_when_inputs_and_gradients_are_independent(generator):
    difference = torch.randn(5, 4, generator=generator)
    x = torch.randn(60_000, 4, generator=generator)
    g = torch.randn(60_000, 5, generator=generator)
    stats = Stats(hessian=x.T @ x / len(x), fisher=g.T @ g / len(g), sample=x, sample_gradient=g)
    assert token_score(difference, stats) == pytest.approx(
        kronecker_score(difference, stats), rel=0.05
    )


def test_output_score_of_a_weight_is_its_kronecker_score(generator):
    weight, stats = site()
    gradient = torch.randn(24, 24, generator=generator)
    stats = replace(stats, fisher=gradient @ gradient.T)
    packed = compress("rtn-w4", weight, stats, "float16")
    expected = kronecker_score(packed.to_dense() - weight, stats)
    assert output_score(stats, weight, packed.operands()) == pytest.approx(expected, rel=1e-4)
    scaled = compress("smoothquant+rtn-w4", weight, stats, "float16")
    expected = kronecker_score(scaled.to_dense() - weight, stats)
    assert output_score(stats, weight, scaled.operands()) == pytest.approx(expected, rel=1e-4)


def test_rounded_inputs_add_to_the_score(generator):
    """Half a step of 8 bits is a 254th of a token's largest input, of 4 bits a 14th."""
    weight, stats = site()
    gradient = torch.randn(24, 24, generator=generator)
    stats = replace(stats, fisher=gradient @ gradient.T)
    a16, a8, a4 = (
        output_score(stats, weight, compress(token, weight, stats, "float16").operands())
        for token in ("rtn-w8-sym", "rtn-w8-sym+absmax-a8", "rtn-w8-sym+absmax-a4")
    )
    assert a16 < a8 < 0.02 * a4


def test_kronecker_score_predicts_the_kl_of_a_softmax_layer(generator):
    """With G = E[diag(p) − p pᵀ], the exact Fisher of the logits, it is the KL to second order."""
    weight = torch.randn(6, 4, generator=generator)
    x = torch.randn(1, 4, generator=generator).expand(20, 4)
    p = torch.softmax(x @ weight.T, -1)
    stats = Stats(
        hessian=x.T @ x / 20, fisher=(torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    )
    difference = 0.01 * torch.randn(6, 4, generator=generator)
    log_q = torch.log_softmax(x @ (weight + difference).T, -1)
    kl = (p * (p.log() - log_q)).sum(-1).mean().item()
    assert kronecker_score(difference, stats) == pytest.approx(kl, rel=0.05)


def test_embedding_score_weighs_rows_by_frequency(generator):
    difference = torch.randn(7, 3, generator=generator)
    gradient = torch.randn(3, 3, generator=generator)
    fisher = gradient @ gradient.T
    frequency = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0, 0.0, 0.0])
    expected = 0.5 * sum(
        frequency[v].item() * (difference[v] @ fisher @ difference[v]).item() for v in range(7)
    )
    end = EndStatistics(torch.empty(0, 3), fisher, torch.eye(3), frequency)
    assert embedding_score(difference, end) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bias", [None, torch.linspace(-2, 2, 30)])
def test_head_score_is_the_exact_kl(generator, bias):
    weight = torch.randn(30, 4, generator=generator)
    changed = weight + 0.3 * torch.randn(30, 4, generator=generator)
    hidden = torch.randn(400, 4, generator=generator)
    end = EndStatistics(hidden, torch.eye(4), torch.eye(4), torch.ones(30) / 30, bias)
    shift = 0 if bias is None else bias.double()
    log_p = torch.log_softmax(hidden.double() @ weight.double().T + shift, -1)
    log_q = torch.log_softmax(hidden.double() @ changed.double().T + shift, -1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert head_score(weight, changed, end) == pytest.approx(expected, rel=1e-4)
    assert head_score(weight, weight, end) == pytest.approx(0.0, abs=1e-6)


def test_missing_statistics_are_named():
    with pytest.raises(ValueError, match="H and G"):
        kronecker_score(torch.zeros(2, 2), Stats())
    with pytest.raises(ValueError, match="samples"):
        token_score(torch.zeros(2, 2), Stats())
    with pytest.raises(ValueError, match="samples and G"):
        output_score(Stats(), torch.zeros(2, 2), Operands(torch.zeros(2, 2)))
