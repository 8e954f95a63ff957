"""Scores against brute force and against the KL that they predict."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from autocomp.calibrate.stream import EndStatistics
from autocomp.core.registry import SCORES
from autocomp.core.stats import Stats
from autocomp.search.scores.base import LinearSite, embedding_score, head_score
from autocomp.testing.methods import compress, site

TOKENS = 50


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def linear(inputs: Tensor, gradients: Tensor, weight: Tensor | None = None) -> LinearSite:
    """A linear whose statistics are those of some tokens."""
    stats = Stats(
        hessian=inputs.T @ inputs / len(inputs),
        fisher=gradients.T @ gradients / len(gradients),
        sample=inputs,
        sample_gradient=gradients,
    )
    shape = gradients.shape[1], inputs.shape[1]
    return LinearSite(torch.zeros(shape) if weight is None else weight, stats)


def value(name: str, place: LinearSite, *changes: Tensor) -> list[float]:
    """What a score says of changes of a weight."""
    score, stacked = SCORES[name](), torch.stack(changes)
    return score.weights(place, stacked, score.pairs(place, stacked)).tolist()


def random(generator: torch.Generator, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """A change (5, 4), inputs and gradients."""
    return (
        torch.randn(5, 4, generator=generator),
        torch.randn(tokens, 4, generator=generator),
        torch.randn(tokens, 5, generator=generator),
    )


def test_kronecker_is_the_quadratic_form_of_the_kronecker_product(generator):
    change, x, g = random(generator)
    place = linear(x, g)
    vector = change.flatten()
    expected = 0.5 * (vector @ torch.kron(place.fisher, place.hessian) @ vector).item()
    assert value("kronecker", place, change) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("token", lambda x, g, d: 0.5 * (g @ d @ x) ** 2),
        ("output-error", lambda x, g, d: (d @ x).square().sum()),
        ("gradient", lambda x, g, d: sum(abs(g[i] * (d[i] @ x)) for i in range(len(g)))),
        ("autoquantize", lambda x, g, d: sum((g[i] * (d[i] @ x)) ** 2 for i in range(len(g)))),
        ("weight-error", lambda x, g, d: d.square().sum()),
    ],
)
def test_others_are_means_over_tokens(generator, name, of):
    change, x, g = random(generator)
    expected = sum(of(x[t], g[t], change).item() for t in range(TOKENS)) / TOKENS
    assert value(name, linear(x, g), change) == pytest.approx([expected], rel=1e-5)


def test_kronecker_and_token_agree_when_inputs_and_gradients_are_independent(generator):
    change, x, g = random(generator, 60_000)
    place = linear(x, g)
    assert value("token", place, change) == pytest.approx(
        value("kronecker", place, change), rel=0.05
    )


def softmax_layer(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    """Inputs, probabilities and weight change of a softmax layer, and the KL of the change."""
    weight = torch.randn(6, 4, generator=generator)
    x = torch.randn(40, 4, generator=generator)
    p = torch.softmax(x @ weight.T, -1)
    change = 0.01 * torch.randn(6, 4, generator=generator)
    log_q = torch.log_softmax(x @ (weight + change).T, -1)
    return x, p, change, (p * (p.log() - log_q)).sum(-1).mean().item()


def test_token_predicts_the_kl_of_a_softmax_layer(generator):
    """Every label as often as it is probable: the mean over labels is the second-order KL."""
    x, p, change, kl = softmax_layer(generator)
    gradients = p[:, None] - torch.eye(6)  # of the label, (tokens, labels, logits)
    scaled = gradients * p[:, :, None].sqrt() * 6**0.5
    place = linear(x.repeat_interleave(6, 0), scaled.flatten(0, 1))
    assert value("token", place, change) == pytest.approx([kl], rel=0.03)


def test_kronecker_predicts_the_kl_of_a_softmax_layer_that_reads_one_input(generator):
    """With G = E[diag(p) − p pᵀ], the exact Fisher of the logits, it is the KL to second order."""
    x, p, change, _ = softmax_layer(generator)
    x, p = x[:1].expand(20, 4), p[:1].expand(20, 6)
    log_q = torch.log_softmax(p.log() + x @ change.T, -1)
    kl = (p * (p.log() - log_q)).sum(-1).mean().item()
    fisher = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    place = LinearSite(torch.zeros(6, 4), Stats(hessian=x.T @ x / 20, fisher=fisher))
    assert value("kronecker", place, change) == pytest.approx([kl], rel=0.05)


@pytest.mark.parametrize("name", ["kronecker", "token"])
def test_pairs_give_the_curvature_between_two_options(generator, name):
    first, x, g = random(generator)
    second = torch.randn(5, 4, generator=generator)
    place = linear(x, g)
    pairs = SCORES[name]().pairs(place, torch.stack([first, second]))
    assert pairs.diagonal().tolist() == value(name, place, first, second)
    assert pairs[0, 1] == pairs[1, 0]
    bend = (pairs[0, 0] + pairs[1, 1] - 2 * pairs[0, 1]).item()
    assert value(name, place, first - second) == pytest.approx([bend], rel=1e-4)


@pytest.mark.parametrize("name", ["output-error", "weight-error", "gradient", "autoquantize"])
def test_pairs_are_in_nats_whatever_the_score(generator, name):
    change, x, g = random(generator)
    place = linear(x, g)
    pairs = SCORES[name]().pairs(place, change[None])
    assert pairs.flatten().tolist() == value("kronecker", place, change)


# --- rounded inputs


def rounded(name: str, *tokens: str) -> list[float]:
    """What a score says of options of one linear as if they rounded its input."""
    weight, stats = site()
    gradient = torch.randn(len(stats.sample), 24, generator=torch.Generator().manual_seed(1))
    fisher = gradient.T @ gradient / len(gradient)
    place = LinearSite(weight, replace(stats, fisher=fisher, sample_gradient=gradient))
    packed = [compress(token, weight, place.stats, "float16") for token in tokens]
    return [SCORES[name]().rounded(place, weight) for weight in packed]


def as_weight(name: str, token: str) -> float:
    """What it says of the weight of an option alone, with H of the sampled tokens."""
    weight, stats = site()
    gradient = torch.randn(len(stats.sample), 24, generator=torch.Generator().manual_seed(1))
    place = linear(stats.sample, gradient, weight)
    return value(name, place, compress(token, weight, stats, "float16").to_dense() - weight)[0]


NAMES = ["kronecker", "token", "output-error", "weight-error", "gradient", "autoquantize"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("token", ["rtn-w4", "smoothquant+rtn-w4"])
def test_where_no_input_is_rounded_both_forms_agree(name, token):
    assert rounded(name, token)[0] == pytest.approx(as_weight(name, token), rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_rounded_inputs_add_to_the_score(name):
    """Half a step of 8 bits is a 254th of a token's largest input, of 4 bits a 14th."""
    a16, a8, a4 = rounded(name, "rtn-w8-sym", "rtn-w8-sym+absmax-a8", "rtn-w8-sym+absmax-a4")
    assert a16 < a8 < (0.2 if name == "gradient" else 0.02) * a4


# --- embedding and head


@pytest.fixture
def end(generator):
    gradient = torch.randn(3, 3, generator=generator)
    return EndStatistics(
        hidden=torch.randn(400, 3, generator=generator),
        embedding_fisher=gradient @ gradient.T,
        head_hessian=torch.eye(3),
        frequency=torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0, 0.0, 0.0]),
        tokens=torch.tensor([0, 2, 0, 3]),
        token_gradient=torch.randn(4, 3, generator=generator),
    )


def test_embedding_score_weighs_rows_by_frequency(generator, end):
    change = torch.randn(7, 3, generator=generator)
    fisher = end.embedding_fisher
    terms = [end.frequency[v].item() * (change[v] @ fisher @ change[v]).item() for v in range(7)]
    assert embedding_score(change, end) == pytest.approx(0.5 * sum(terms), rel=1e-5)
    energy = (end.frequency * change.square().sum(1)).sum().item()
    assert SCORES["output-error"]().embedding(change, end) == pytest.approx(energy, rel=1e-5)


def test_embedding_of_scores_without_such_a_form_is_that_of_sampled_tokens(generator, end):
    change = torch.randn(7, 3, generator=generator)
    pairs = [(g, change[v]) for v, g in zip(end.tokens, end.token_gradient, strict=True)]
    products = torch.stack([g * d for g, d in pairs])
    for name, terms in (("gradient", products.abs()), ("autoquantize", products.square())):
        expected = terms.sum().item() / 4
        assert SCORES[name]().embedding(change, end) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bias", [None, torch.linspace(-2, 2, 7)])
def test_head_score_is_the_exact_kl(generator, end, bias):
    weight = torch.randn(7, 3, generator=generator)
    changed = weight + 0.3 * torch.randn(7, 3, generator=generator)
    end = replace(end, head_bias=bias)
    shift = 0 if bias is None else bias.double()
    log_p = torch.log_softmax(end.hidden.double() @ weight.double().T + shift, -1)
    log_q = torch.log_softmax(end.hidden.double() @ changed.double().T + shift, -1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert head_score(weight, changed, end) == pytest.approx(expected, rel=1e-4)
    assert head_score(weight, weight, end) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("name", "power"), [("gradient", 1), ("autoquantize", 2)])
def test_head_of_other_scores_is_the_mean_over_drawn_labels(generator, end, name, power):
    """g = p − 1(label) at the logits, each label as often as it is probable."""
    weight = torch.randn(7, 3, generator=generator)
    change = 0.3 * torch.randn(7, 3, generator=generator)
    p = torch.softmax(end.hidden @ weight.T, -1)
    moved = end.hidden @ change.T
    expected = 0.0
    for label in range(7):
        gradient = p - torch.eye(7)[label]
        terms = (gradient * moved).abs().pow(power).sum(1)
        expected += (p[:, label] * terms).mean().item()
    found = SCORES[name]().head(weight, weight + change, end)
    assert found == pytest.approx(expected, rel=1e-4)


def test_missing_statistics_are_named(end):
    empty, change = LinearSite(torch.zeros(2, 2), Stats()), torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="needs H"):
        SCORES["kronecker"]().pairs(empty, change)
    with pytest.raises(ValueError, match="sample of inputs"):
        SCORES["token"]().pairs(empty, change)
    with pytest.raises(ValueError, match="sinks apart"):
        SCORES["kronecker-sinks"]().pairs(empty, change)
    with pytest.raises(ValueError, match="sample of tokens"):
        SCORES["gradient"]().embedding(torch.zeros(7, 3), replace(end, tokens=None))
