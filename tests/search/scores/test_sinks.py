"""A token of enormous input and little gradient, which the Kronecker form takes for a loss."""

import pytest
import torch

from autocomp.calibrate.sinks import SinkStatistics
from autocomp.core.registry import SCORES
from autocomp.core.stats import Stats
from autocomp.search.scores.base import LinearSite
from autocomp.testing.methods import compress, site

TOKENS, SINKS = 4000, 4


@pytest.fixture(scope="module")
def place() -> LinearSite:
    """4 of 4,000 tokens have inputs 300 times larger and gradients 100 times smaller."""
    generator = torch.Generator().manual_seed(0)
    weight, _ = site()
    out, width = weight.shape
    x = torch.randn(TOKENS, width, generator=generator)
    g = torch.randn(TOKENS, out, generator=generator)
    sinks = torch.arange(TOKENS) % (TOKENS // SINKS) == 0
    x[sinks, 0] += 300
    g[sinks] /= 100
    others, far = ~sinks, sinks
    apart = SinkStatistics(
        tokens=TOKENS,
        inputs=x[far],
        gradients=g[far],
        hessian=x[others].T @ x[others] / others.sum(),
        fisher=g[others].T @ g[others] / others.sum(),
        sampled=sinks,
    )
    stats = Stats(hessian=x.T @ x / TOKENS, fisher=g.T @ g / TOKENS, sample=x, sample_gradient=g)
    return LinearSite(weight, stats, apart)


def values(name: str, place: LinearSite) -> float:
    generator = torch.Generator().manual_seed(1)
    change = 0.01 * torch.randn(1, *place.weight.shape, generator=generator)
    score = SCORES[name]()
    return score.weights(place, change, score.pairs(place, change)).item()


def test_a_sink_no_longer_dominates(place):
    """H is 1 a channel, and 300² · 4 / 4,000 = 90 in the sinks' one: 90 / 32 of all others."""
    exact = values("token", place)
    assert values("kronecker", place) > 3 * exact
    assert values("kronecker-sinks", place) == pytest.approx(exact, rel=0.05)


def test_each_sink_counts_as_what_it_is(place):
    exact, without = values("token", place), values("token-no-sinks", place)
    product = 0.01 * torch.randn(
        1, *place.weight.shape, generator=torch.Generator().manual_seed(1)
    )
    apart = place.apart
    sinks = 0.5 * (apart.inputs @ product[0].T * apart.gradients).sum(1).square().sum() / TOKENS
    assert exact - without == pytest.approx(sinks.item(), rel=1e-3)
    others = LinearSite(place.weight, Stats(hessian=apart.hessian, fisher=apart.fisher))
    share = 1 - SINKS / TOKENS
    assert values("kronecker-sinks", place) == pytest.approx(
        share * values("kronecker", others) + sinks.item(), rel=1e-4
    )


@pytest.mark.parametrize("name", ["kronecker-sinks", "token-no-sinks"])
def test_rounded_inputs_follow_the_same_shares(place, name):
    """Without rounding an option is a change of the weight, scored by its other form."""
    packed = compress("rtn-w4", place.weight, place.stats, "float16")
    change = (packed.to_dense() - place.weight)[None]
    score = SCORES[name]()
    expected = score.weights(place, change, score.pairs(place, change)).item()
    assert score.rounded(place, packed) == pytest.approx(expected, rel=1e-3)
