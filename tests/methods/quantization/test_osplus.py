import pytest
import torch

from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods import compose
from autocomp.testing.methods import compress, sample_error


@pytest.fixture
def outlying():
    """A weight (48, 64) and inputs with three outlying channels."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator)
    inputs = torch.randn(256, 64, generator=generator)
    inputs[:, [5, 9, 40]] *= torch.tensor([60.0, 20, 8])
    return weight, Stats(absmax=inputs.abs().amax(dim=0), sample=inputs)


def scale(weight, stats, token):
    spec = LayerSpec.parse(token)
    return compose.fit_input([weight], [spec], stats)["scale"].double()


def test_only_channels_above_one_threshold_are_scaled_down_to_it(outlying):
    weight, stats = outlying
    found = scale(weight, stats, "osplus+rtn-w8-sym+absmax-a8")
    remaining = stats.absmax / found
    scaled = found > 1
    assert 0 < int(scaled.sum()) < 64
    # s is rounded to 11 significant bits
    threshold = remaining[scaled].max()
    torch.testing.assert_close(
        remaining[scaled], threshold.expand(int(scaled.sum())), rtol=2**-10, atol=0
    )
    assert bool((remaining <= threshold * (1 + 2**-10)).all())


def test_output_is_preserved_before_rounding(outlying):
    weight, stats = outlying
    found = scale(weight, stats, "osplus+rtn-w8-sym+absmax-a8")
    inputs, weight = stats.sample.double(), weight.double()
    changed, expected = (inputs / found) @ (weight * found).T, inputs @ weight.T
    assert float((changed - expected).norm() / expected.norm()) < 1e-14


def test_nothing_to_gain_leaves_the_input_as_it_is():
    """Without rounding every threshold is as good; the first, the largest maximum, means s = 1."""
    weight, inputs = torch.ones(4, 8), torch.eye(8)
    stats = Stats(absmax=inputs.amax(dim=0), sample=inputs)
    assert torch.equal(scale(weight, stats, "osplus+rtn-w8"), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("rest", ["rtn-w8-sym+absmax-a8", "rtn-w4+absmax-a8-tensor", "rtn-w4"])
def test_the_best_threshold_is_no_worse_than_none(outlying, rest):
    """The sample is what the threshold is chosen on; s = 1 is among the candidates."""
    weight, stats = outlying
    plain, scaled = (
        sample_error(weight, compress(token, weight, stats, "float16"), stats)
        for token in (rest, f"osplus+{rest}")
    )
    assert scaled <= plain * (1 + 1e-6)


def test_the_threshold_is_that_of_the_rounding_it_is_for(outlying):
    """Coarse weights take less of the outliers than 8-bit weights beside 4-bit inputs."""
    weight, stats = outlying
    weights, inputs = (
        scale(weight, stats, f"osplus+{rest}").max()
        for rest in ("rtn-w3-sym+absmax-a8", "rtn-w8-sym+absmax-a4")
    )
    assert weights < inputs


def test_readers_share_one_threshold(outlying):
    weight, stats = outlying
    specs = [LayerSpec.parse("osplus+rtn-w8-sym+absmax-a8")] * 2
    together = compose.fit_input([weight[:24], weight[24:]], specs, stats)["scale"].double()
    assert torch.equal(together, scale(weight, stats, specs[0].token()))
