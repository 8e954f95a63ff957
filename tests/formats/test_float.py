import pytest
import torch

from autocomp.core.errors import NumericalError, PlanError
from autocomp.formats.float import Float
from autocomp.formats.float_input import RoundFloatInput


def bits_a_weight(code, group, scales):
    return 8 * Float((256, 1024), code, group, scales).nbytes / (256 * 1024)


def test_bits_a_weight():
    assert bits_a_weight("e2m1", 256, "real") == 4 + 16 / 256
    assert bits_a_weight("e2m1", 32, "power") == 4.25  # MXFP4
    assert bits_a_weight("e4m3", 32, "power") == 8.25  # MXFP8
    assert bits_a_weight("e2m1", 64, "relative") == 4 + 8 / 64 + 16 / 1024
    assert bits_a_weight("e5m2", None, "real") == 8 + 16 / 1024


def test_mxfp4_bytes_are_those_of_the_specification():
    """32 codes, two a byte from the lower half on, and one exponent with a bias of 127."""
    weight = torch.tensor([[0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -6.0] * 4]) / 16
    stored = Float((1, 32), "e2m1", 32, "power").pack(
        weight, {"scale": torch.tensor([[123]], dtype=torch.uint8)}
    )
    assert stored.tensors["codes"][0, :4].tolist() == [0x21, 0x43, 0x65, 0xF7]
    assert torch.equal(stored.to_dense(), weight)


def test_what_is_beyond_the_largest_number_becomes_that():
    layout = Float((1, 4), "e4m3")
    stored = layout.pack(torch.tensor([[1e6, -1e6, 1.0, 0.0]]), {"scale": torch.ones(1, 1).half()})
    assert stored.to_dense().tolist() == [[448.0, -448.0, 1.0, 0.0]]


def test_refusals():
    for arguments in (("e3m0",), ("e2m1", None, "real8"), ("e2m1", 5)):
        with pytest.raises(PlanError):
            Float((4, 16), *arguments)
    with pytest.raises(NumericalError, match="float16"):
        Float((1, 4), "e2m1").pack(torch.ones(1, 4), {"scale": torch.tensor([[torch.inf]]).half()})
    with pytest.raises(PlanError, match="got 6"):
        RoundFloatInput(16, 6)


@pytest.mark.parametrize(("bits", "largest", "relative"), [(8, 448, 2**-4), (4, 6, 0.25)])
def test_a_rounded_input(bits, largest, relative):
    step = RoundFloatInput(64, bits)
    inputs = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    points, size = step.points(inputs)
    assert points.abs().amax(dim=-1).eq(largest).all()
    assert torch.equal(step.apply(inputs, {}), points * size)
    least = size * 2.0 ** (1 - step.numbers.bias)
    bound = relative * torch.maximum(inputs.abs(), least) * 1.001
    assert bool(((points * size - inputs).abs() <= bound).all())
    assert torch.equal(step.apply(torch.zeros(2, 64), {}), torch.zeros(2, 64))
    trained = inputs.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(step.apply(trained, {}).sum(), trained)
    assert torch.equal(gradient, torch.ones_like(inputs))
