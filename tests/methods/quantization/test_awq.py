import pytest
import torch

from autocomp.core.errors import UnsupportedError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.steps import Scale
from autocomp.methods.compose import check, compress, fit_input
from autocomp.testing.methods import output_error, site

RATIOS = [step / 20 for step in range(20)]


def moments(inputs):
    return Stats(hessian=inputs.T @ inputs / len(inputs), absmean=inputs.abs().mean(dim=0))


def outlying(seed=0, rows=64):
    """256 inputs of which every 37th is 20 times as large, and a weight (rows, 256)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn((2048, 256), generator=generator)
    inputs[:, ::37] *= 20
    return torch.randn((rows, 256), generator=generator), inputs


def scale_of(ratio, absmean):
    """The definition, with the rounding of what is stored."""
    power = (absmean**ratio).clamp_min(1e-4)
    return (power / (power.max() * power.min()).sqrt()).half().float()


def rounding_error(weight, scale, stats, token):
    rounded = compress(weight * scale, LayerSpec.parse(token), None, "float16").to_dense()
    return output_error(weight, rounded / scale, stats)


def fitted(weights, stats, token="awq+rtn-w3g16"):
    return fit_input(weights, [LayerSpec.parse(token)] * len(weights), stats)["scale"].float()


@pytest.mark.parametrize("token", ["rtn-w4g8", "rtn-w3-sym", "gptq-w3g8"])
def test_without_scaling_it_is_the_quantizer_itself(token):
    """Bitwise: where all channels are alike, and where the large ones matter least (r = 0)."""
    weight, stats = site()
    falling = 1.5 ** -torch.arange(32.0)
    opposed = Stats(hessian=torch.diag(falling**2), absmean=1 / falling)
    alike = Stats(hessian=stats.hessian, absmean=torch.full((32,), 0.7))
    for case in (opposed, alike):
        scaled = compress(weight, LayerSpec.parse(f"awq+{token}"), case, "float16")
        plain = compress(weight, LayerSpec.parse(token), case, "float16")
        assert bool((scaled.tensors["input.scale"] == 1).all())
        for name, tensor in plain.tensors.items():
            assert torch.equal(scaled.tensors[f"inner.{name}"], tensor)


def test_scaling_alone_changes_no_output():
    """Up to the rounding of fp32: s is used as it is stored, in the weight and on the input."""
    weight, inputs = outlying()
    step, tensors = Scale(256), {"scale": fitted([weight], moments(inputs)).half()}
    scaled = step.apply(inputs, tensors) @ step.absorb(weight, tensors).T
    torch.testing.assert_close(scaled, inputs @ weight.T, rtol=0, atol=1e-5 * 20 * 16)
    assert tensors["scale"].max() > 2 * tensors["scale"].min()


def test_outlying_channels_are_where_it_pays():
    """A third of the error is left at r = 0.3 or 0.35: 7 of 256 channels carried all of it."""
    weight, inputs = outlying(rows=256)
    stats = moments(inputs)
    errors = [
        rounding_error(weight, scale_of(r, stats.absmean), stats, "rtn-w3g128") for r in RATIOS
    ]
    best = compress(weight, LayerSpec.parse("awq+rtn-w3g128"), stats, "float16")
    assert output_error(weight, best.to_dense(), stats) == pytest.approx(min(errors), rel=1e-4)
    assert RATIOS[errors.index(min(errors))] in (0.3, 0.35)
    assert 0.3 < min(errors) / errors[0] < 0.4


@pytest.mark.parametrize("rows", [24, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_ratio_is_chosen(seed, rows):
    """The best of all for few rows; for many rows one of the best, and never worse than r = 0."""
    weight, stats = site(seed, (rows, 32))
    errors = [
        rounding_error(weight, scale_of(r, stats.absmean), stats, "rtn-w3g16") for r in RATIOS
    ]
    found = rounding_error(weight, fitted([weight], stats), stats, "rtn-w3g16")
    assert found <= errors[0]
    assert found <= min(errors) * (1.0 if rows < 128 else 1.05)


def test_readers_of_one_input_share_the_scale_that_is_best_for_all():
    weight, inputs = outlying()
    stats, other = moments(inputs), 3 * outlying(1, 48)[0]
    shared = fitted([weight, other], stats)
    errors = [
        sum(
            rounding_error(part, scale_of(r, stats.absmean), stats, "rtn-w3g16")
            for part in (weight, other)
        )
        for r in RATIOS
    ]
    best = RATIOS[errors.index(min(errors))]
    assert torch.equal(shared, scale_of(best, stats.absmean))
    assert best > 0


def test_the_grid_is_clipped_after_the_search():
    weight, inputs = outlying()
    stats = moments(inputs)
    plain, clipped = (
        compress(weight, LayerSpec.parse(f"awq+rtn-w3g64{flag}"), stats, "float16")
        for flag in ("", "-clip")
    )
    assert torch.equal(plain.tensors["input.scale"], clipped.tensors["input.scale"])
    errors = [output_error(weight, one.to_dense(), stats) for one in (clipped, plain)]
    assert errors[0] < errors[1]


def test_silent_inputs_do_no_harm():
    weight, inputs = outlying()
    inputs[:, 5] = 0
    dense = compress(weight, LayerSpec.parse("awq+gptq-w4g64"), moments(inputs), "float16")
    assert bool(torch.isfinite(dense.to_dense()).all())


def test_folded_is_no_option():
    """A plan may say it, and a file then holds no scale; a search may not ask for it."""
    folded = LayerSpec.parse("awq-folded+rtn-w4g64")
    assert folded.token() == "awq-folded+rtn-w4g64"
    with pytest.raises(UnsupportedError, match="result of a finish"):
        check(folded, "linear", (64, 256))
