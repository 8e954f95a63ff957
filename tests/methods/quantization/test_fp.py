import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import CompressedWeight
from autocomp.methods.quantization.fp import Fp, FpSpec
from autocomp.methods.quantization.fpabsmax import FpAbsmaxSpec
from autocomp.testing.methods import compress, output_error, sample_error, site


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def squared_error(token, weight):
    change = compress(token, weight, None, "float16").to_dense() - weight
    return float(change.square().mean())


def test_tokens_and_their_codes():
    assert FpSpec(4, 64).token() == "fp-w4g64"
    assert FpSpec.parse("fp-w8-e5m2-m2") == FpSpec(8, None, True, "relative")
    codes = {"fp-w4": "e2m1", "fp-w8": "e4m3", "fp-w8-e5m2": "e5m2"}
    assert {token: FpSpec.parse(token).code for token in codes} == codes
    for refused in ((6,), (4, None, True), (4, 0), (4, None, False, "m1")):
        with pytest.raises(PlanError, match="fp: "):
            FpSpec(*refused)
    with pytest.raises(PlanError, match="one of"):
        FpAbsmaxSpec(6)


def test_error_on_a_normal_distribution():
    """E2M1 loses less than symmetric integers of as many bits."""
    weight = normal(512, 1024)
    assert squared_error("fp-w4g256", weight) == pytest.approx(0.01234, abs=2e-4)
    groups = weight.view(512, 4, 256)
    scale = groups.abs().amax(dim=2, keepdim=True) / 7
    integers = (groups / scale).round().clamp(-8, 7) * scale - groups
    assert float(integers.square().mean()) == pytest.approx(0.01582, abs=3e-4)


@pytest.mark.parametrize("token", ["fp-w4g8", "fp-w8g8", "fp-w8g8-e5m2"])
def test_the_scale_is_the_least_that_clips_nothing(token):
    weight = normal(24, 32) * torch.logspace(-3, 2, 24)[:, None]
    groups = weight.view(24, 4, 8)
    largest = groups.abs().amax(dim=2)
    needed = {}
    for ending in ("", "-m1", "-m2"):
        grid = Fp().grid(weight, FpSpec.parse(token + ending))
        needed[ending] = largest / (grid.scale * grid.numbers.largest)
        assert bool((needed[ending] <= 1.000001).all()), ending
    assert bool((needed["-m1"] > 0.4999999).all())
    assert bool((needed["-m2"] > 0.498).all())
    normal_rows = slice(8, None)  # below, scales of wide codes are subnormal in float16
    assert float(needed[""][normal_rows].min()) > 0.9
    # the largest of a row keeps its scale
    assert float(needed["-m2"][normal_rows].amax(dim=1).min()) > 0.9


def test_power_of_two_scales_change_nothing_where_scales_are_such():
    weight = normal(16, 64).view(16, 8, 8)
    powers = 2.0 ** torch.randint(-6, 3, (16, 8, 1), generator=torch.Generator().manual_seed(1))
    weight = (weight / weight.abs().amax(dim=2, keepdim=True) * powers * 6).view(16, 64)
    dense = [
        compress(f"fp-w4g8{ending}", weight, None, "float16").to_dense()
        for ending in ("", "-m1", "-m2")
    ]
    assert torch.equal(dense[0], dense[1])
    assert torch.equal(dense[0], dense[2])


def test_relative_scales_lose_less_than_powers_of_two():
    weight = normal(256, 1024)
    losses = [squared_error(f"fp-w4g256{ending}", weight) for ending in ("", "-m2", "-m1")]
    assert losses == sorted(losses)


def test_feedback_is_nearest_when_inputs_are_not_correlated():
    weight, _ = site()
    diagonal = Stats(hessian=torch.diag(torch.rand(32) + 0.1))
    for ending in ("w4g8", "w4g8-m2", "w8-e5m2"):
        found = compress(f"zqfp-{ending}", weight, diagonal, "float16")
        nearest = compress(f"fp-{ending}", weight, None, "float16")
        for name, tensor in nearest.tensors.items():
            assert torch.equal(tensor.float(), found.tensors[name].float()), name


def test_feedback_loses_less_of_the_outputs():
    def lost(token):
        weights = [site(seed) for seed in range(5)]
        return sum(
            output_error(weight, compress(token, weight, stats, "float16").to_dense(), stats)
            for weight, stats in weights
        )

    assert lost("zqfp-w4g8") < 0.7 * lost("fp-w4g8")
    assert lost("zqfp-w4g8-m2+lorc-r8") < lost("zqfp-w4g8-m2+lorc-r2") < lost("zqfp-w4g8-m2")


def test_the_residual_of_full_rank_leaves_nothing():
    weight, stats = site()
    dense = compress("zqfp-w4g8-m2+lorc-r24", weight, stats, "float32").to_dense()
    assert float((dense - weight).norm()) < 1e-5 * float(weight.norm())


@pytest.mark.parametrize("token", ["zqfp-w4g8-m1", "fp-w8", "fp-w4g8-m2"])
def test_rounded_inputs_meet_the_codes(token):
    """Multiplied as numbers and scaled afterwards: what multiplying scaled inputs gives."""
    weight, stats = site()
    found = compress(f"{token}+fpabsmax-a8", weight, stats, "float16")
    inputs = stats.sample[:9]
    product = found.layout.matmul(found.tensors, inputs)
    rounded = found.layout.prepare(found.tensors, inputs)
    expected = rounded @ found.layout.unpack(found.tensors).to_dense().T
    assert torch.allclose(product, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(rounded, inputs, rtol=1e-3)
    half = found.layout.matmul(found.tensors, inputs.half())
    assert float((half.float() - product).norm()) < 2e-3 * float(product.norm())


def test_eight_bits_of_input_lose_little_of_w4a8():
    weight, stats = site()
    alone, both, four = (
        sample_error(weight, compress(f"zqfp-w4g8{ending}", weight, stats, "float16"), stats)
        for ending in ("", "+fpabsmax-a8", "+fpabsmax-a4")
    )
    assert alone < both < 2 * alone < four


def test_other_steps_and_slots_go_with_them():
    weight, stats = site()
    for token in ("awq+zqfp-w4g8", "rotation-hadamard+fp-w4g8", "smoothquant+fp-w8+fpabsmax-a8"):
        found = compress(token, weight, stats, "float16")
        assert isinstance(found, CompressedWeight)
        assert LayerSpec.parse(token).token() == token
        assert sample_error(weight, found, stats) < 0.1 * float(weight.square().sum() * 32)
