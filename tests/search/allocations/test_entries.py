"""What the papers' entries say of each allocation, on numbers that can be checked by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from autocomp.config import load_config
from autocomp.core.errors import ConfigError
from autocomp.core.stats import Stats
from autocomp.search.allocations.asvd import Asvd
from autocomp.search.allocations.base import LEAST_SHARE, AllocatedSite, parse_allocation
from autocomp.search.allocations.owl import Owl
from autocomp.search.allocations.samsp import Samsp
from autocomp.search.scores.base import LinearSite


def sites(*signals: float, weights: int = 100) -> list[AllocatedSite]:
    return [AllocatedSite(str(i), weights, signal) for i, signal in enumerate(signals)]


def linear(weight: torch.Tensor, inputs: torch.Tensor, gradient: torch.Tensor) -> LinearSite:
    norms = inputs.square().mean(0).sqrt()
    return LinearSite(weight, Stats(norms=norms, sample=inputs, sample_gradient=gradient))


@pytest.fixture
def block() -> dict[str, LinearSite]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in (("up", (24, 16)), ("down", (16, 24))):
        weight = torch.randn(shape, generator=generator)
        weight[0, 0] = 40.0
        inputs = torch.randn(32, shape[1], generator=generator)
        found[name] = linear(weight, inputs, torch.randn(32, shape[0], generator=generator))
    return found


def test_owl_counts_outliers_over_the_whole_block(block: dict[str, LinearSite]) -> None:
    metric = torch.cat(
        [
            (site.weight.abs() * site.sample.square().mean(0).sqrt()).flatten()
            for site in block.values()
        ]
    )
    expected = 100 * (metric > 5 * metric.mean()).double().mean().item()
    assert expected > 0
    assert Owl().read(block) == pytest.approx({"up": expected, "down": expected})
    fewer = Owl(threshold=1000.0).read(block)
    assert fewer == {"up": 0.0, "down": 0.0}


def test_owl_is_blind_to_the_scale_of_a_block(block: dict[str, LinearSite]) -> None:
    scaled = {
        name: linear(8 * site.weight, site.sample, site.gradient) for name, site in block.items()
    }
    assert Owl().read(scaled) == Owl().read(block)


def test_owl_spans_two_lambda_around_the_target() -> None:
    shares = Owl(spread=0.08).profile(sites(0.0, 1.0, 3.0, 4.0), 0.3)
    assert list(shares.values()) == pytest.approx([0.22, 0.26, 0.34, 0.38])


@pytest.mark.parametrize("allocation", [Owl(spread=0.0), Samsp(spread=0.0)])
def test_no_spread_is_uniform(allocation: Owl | Samsp) -> None:
    assert set(allocation.profile(sites(0.1, 7.0, 3.0), 0.5).values()) == {0.5}


@pytest.mark.parametrize("allocation", [Owl(), Samsp()])
def test_equal_signals_are_uniform(allocation: Owl | Samsp) -> None:
    shares = allocation.profile(sites(2.0, 2.0, 2.0), 0.4)
    assert list(shares.values()) == pytest.approx([0.4] * 3)


def test_shares_are_kept_in_bounds_and_the_mean_stays_exact() -> None:
    allocation, signals = Owl(spread=0.3), sites(0.0, 0.5, 1.0)
    low, high = (list(allocation.profile(signals, t).values()) for t in (0.2, 0.9))
    assert low[0] == LEAST_SHARE
    assert high[2] == 1.0
    assert [np.mean(low), np.mean(high)] == pytest.approx([0.2, 0.9])


def test_samsp_rises_evenly_with_the_rank_of_the_sensitivity() -> None:
    shares = Samsp(spread=0.1).profile(sites(5.0, 0.001, 800.0, 6.0, 0.2), 0.5)
    assert list(shares.values()) == pytest.approx([0.5, 0.4, 0.6, 0.55, 0.45])


def test_samsp_weighs_the_mean_by_size() -> None:
    found = [AllocatedSite("small", 100, 1.0), AllocatedSite("large", 300, 2.0)]
    shares = Samsp(spread=0.1).profile(found, 0.5)
    assert shares == pytest.approx({"small": 0.35, "large": 0.55})


def test_samsps_trace_is_that_of_the_losss_hessian() -> None:
    """Of a softmax regression, whose Fisher matrix is its Hessian, by Hutchinson's estimate."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 6, generator=generator) * torch.linspace(0.2, 2.0, 6)
    weight = torch.randn(5, 6, generator=generator, requires_grad=True)
    logits = inputs @ weight.T
    labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator).squeeze(1)
    loss = functional.cross_entropy(logits, labels)
    (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
    traces = []
    for _ in range(200):
        z = torch.randn(weight.shape, generator=generator)
        (product,) = torch.autograd.grad((slope * z).sum(), weight, retain_graph=True)
        traces.append((z * product).sum().item())
    gradient = logits.detach().softmax(1) - functional.one_hot(labels, 5)
    (read,) = Samsp().read({"w": linear(weight.detach(), inputs, gradient)}).values()
    assert read * weight.numel() == pytest.approx(np.mean(traces), rel=0.1)


def test_asvd_takes_the_smallest_share_behind_the_cut() -> None:
    robust = AllocatedSite("robust", 100, losses={0.2: 0.3, 0.5: 0.1, 1.0: 0.0})
    fragile = AllocatedSite("fragile", 100, losses={0.2: 9.0, 0.5: 2.0, 1.0: 0.0})
    expected = {
        1.0: (1.0, 1.0),
        0.8: (0.5, 1.0),  # the least loss first
        0.6: (0.2, 1.0),
        0.59: (0.2, 0.5),
        0.2: (0.2, 0.2),
        0.1: (0.2, 0.2),  # no option is smaller
    }
    for target, shares in expected.items():
        found = Asvd().profile([robust, fragile], target)
        assert tuple(found.values()) == shares


@pytest.mark.parametrize("text", ["owl", "owl-l0.12", "owl-m7", "owl-l0.12-m7", "samsp-a0.2"])
def test_tokens_are_canonical(text: str) -> None:
    assert parse_allocation(text).token() == text


def test_a_default_setting_is_left_out_of_the_token() -> None:
    assert parse_allocation("owl-l0.08-m6").token() == "owl-m6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("owl-x3", r"expected owl\[-l<spread>\]\[-m<threshold>\]"),
        ("owl-l0.6", "spread must lie in"),
        ("samsp-a0.5", "spread must lie in"),
        ("oww", "Did you mean 'owl'"),
    ],
)
def test_what_cannot_be_read_says_what_can(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, {"model": "m", "search.allocations": [text]})


def test_settings_name_an_allocation_once() -> None:
    config = load_config(None, {"model": "m", "search.allocations": ["owl", "owl-m6.0"]})
    assert config.search.allocations == ("owl", "owl-m6")
    with pytest.raises(ConfigError, match="once"):
        load_config(None, {"model": "m", "search.allocations": ["owl", "owl-m5"]})
