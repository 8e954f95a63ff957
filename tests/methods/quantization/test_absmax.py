import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Needs
from autocomp.methods import compose
from autocomp.testing.methods import compress, site


def rounded(token, inputs, stats=None):
    weight = site()[0]
    return compress(f"rtn-w8-sym+{token}", weight, stats, "float16").operands().prepare(inputs)


def test_each_token_has_its_own_scale():
    inputs = site()[1].sample[:6].clone()
    inputs[2] *= 100
    found = rounded("absmax-a8", inputs)
    half_steps = inputs.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert bool(((found - inputs).abs() <= half_steps * (1 + 1e-4)).all())
    assert torch.equal(found[3:4], rounded("absmax-a8", inputs[3:4]))


def test_one_scale_comes_from_calibration_and_clips_what_lies_beyond():
    weight, stats = site()
    packed = compress("rtn-w8-sym+absmax-a8-tensor", weight, stats, "float16")
    step = stats.absmax.max() / 127
    assert torch.equal(packed.tensors["activation.scale"], step.reshape(1))
    inputs = 3 * stats.sample
    found = packed.operands().prepare(inputs)
    inside = inputs.abs() <= stats.absmax.max()
    assert bool(((found - inputs).abs()[inside] <= step / 2 * (1 + 1e-4)).all())
    assert float(found.abs().max()) == pytest.approx(float(stats.absmax.max()))


def test_only_a_static_scale_needs_calibration_and_bytes():
    shape, plain = (24, 32), LayerSpec.parse("rtn-w8-sym")
    dynamic, static = (
        LayerSpec.parse(f"rtn-w8-sym+absmax-a8{ending}") for ending in ("", "-tensor")
    )
    assert compose.needs(dynamic) == frozenset()
    assert compose.needs(static) == {Needs.ABSMAX}
    size = compose.layout(plain, shape, "float16").nbytes
    assert compose.layout(dynamic, shape, "float16").nbytes == size
    assert compose.layout(static, shape, "float16").nbytes == size + 4


def test_static_scale_is_that_of_the_changed_input():
    """Behind a scale the largest magnitudes are exact, behind a rotation those of the sample."""
    weight, stats = site()
    for token in ("smoothquant", "rotation-hadamard"):
        spec = LayerSpec.parse(f"{token}+rtn-w8-sym+absmax-a8-tensor")
        packed = compose.compress(weight, spec, stats, "float16")
        step = packed.layout.input
        changed = step.apply(stats.sample, {"scale": packed.tensors.get("input.scale")})
        torch.testing.assert_close(
            packed.tensors["activation.scale"], changed.abs().max().reshape(1) / 127
        )


def test_bits_that_do_not_exist_are_refused():
    with pytest.raises(PlanError, match="4, 6, 8"):
        LayerSpec.parse("rtn-w8+absmax-a5")
