import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods import compose
from autocomp.methods.quantization.smoothquant import SmoothQuantSpec
from autocomp.testing.methods import compress, sample_error

CHANNEL = 5


@pytest.fixture
def outlying():
    """A weight (64, 128) and inputs of which one channel is 60 times as large as the others."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator)
    inputs = torch.randn(512, 128, generator=generator)
    inputs[:, CHANNEL] *= 60
    return weight, Stats(absmax=inputs.abs().amax(dim=0), sample=inputs)


def scale(weights, stats, token):
    spec = LayerSpec.parse(f"{token}+rtn-w8-sym")
    return compose.fit_input(weights, [spec] * len(weights), stats)["scale"]


def test_default_strength_evens_input_and_weight(outlying):
    weight, stats = outlying
    found = scale([weight], stats, "smoothquant").double()
    inputs, columns = stats.absmax / found, weight.abs().amax(dim=0) * found
    # s is rounded to 11 significant bits, once in each of the two
    torch.testing.assert_close(inputs, columns, rtol=2**-10, atol=0)


def test_ends_of_the_strength(outlying):
    weight, stats = outlying
    none, all_of_it = (scale([weight], stats, f"smoothquant-a{a}").float() for a in (0, 100))
    torch.testing.assert_close(none, 1 / weight.abs().amax(dim=0), rtol=2**-11, atol=0)
    torch.testing.assert_close(all_of_it, stats.absmax, rtol=2**-11, atol=0)


def test_output_is_preserved_before_rounding(outlying):
    weight, stats = outlying
    found = scale([weight], stats, "smoothquant").double()
    inputs = stats.sample.double()
    expected = inputs @ weight.double().T
    changed = (inputs / found) @ (weight.double() * found).T
    assert float((changed - expected).norm() / expected.norm()) < 1e-14


def test_smoothing_saves_rounded_inputs(outlying):
    """Static 8-bit inputs: one channel that is 60 times larger costs the others 6 bits."""
    weight, stats = outlying
    outputs = (stats.sample @ weight.T).square().sum(dim=1).mean()
    plain, even, all_of_it = (
        (sample_error(weight, compress(token, weight, stats, "float16"), stats) / outputs) ** 0.5
        for token in (
            "rtn-w8-sym+absmax-a8-tensor",
            "smoothquant+rtn-w8-sym+absmax-a8-tensor",
            "smoothquant-a100+rtn-w8-sym+absmax-a8-tensor",
        )
    )
    assert even < 0.25 * plain
    assert even < all_of_it < 0.5 * plain


def test_readers_of_one_input_share_the_scale_of_their_largest_weight(outlying):
    weight, stats = outlying
    small, large = weight[:32], 10 * weight[32:]
    together = scale([small, large], stats, "smoothquant")
    assert torch.equal(together, scale([torch.cat([small, large])], stats, "smoothquant"))
    assert not torch.equal(together, scale([small], stats, "smoothquant"))
    spec = LayerSpec.parse("smoothquant+rtn-w8-sym")
    stored = compose.compress(small, spec, stats, "float16", step={"scale": together})
    assert torch.equal(stored.tensors["input.scale"], together)
    with pytest.raises(PlanError, match="one input has one step"):
        compose.fit_input([small, large], [spec, LayerSpec.parse("rtn-w8-sym")], stats)


def test_dead_channels_and_dead_columns_stay_in_range():
    weight, absmax = torch.randn(8, 4), torch.ones(4)
    absmax[0], weight[:, 1] = 0, 0
    for token in ("smoothquant", "smoothquant-a0", "smoothquant-a100"):
        found = scale([weight], Stats(absmax=absmax), token)
        assert bool(torch.isfinite(found).all())
        assert bool((found > 0).all())


def test_tokens():
    assert SmoothQuantSpec().token() == "smoothquant"
    assert SmoothQuantSpec.parse("smoothquant-a50") == SmoothQuantSpec()
    folded = SmoothQuantSpec(alpha_percent=85, folded=True)
    assert folded.token() == "smoothquant-a85-folded"
    assert SmoothQuantSpec.parse(folded.token()) == folded
    assert SmoothQuantSpec.parse("smoothquant-a0").alpha_percent == 0
    with pytest.raises(PlanError, match=r"0\.\.100"):
        SmoothQuantSpec(alpha_percent=101)
