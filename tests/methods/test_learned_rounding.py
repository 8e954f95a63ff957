import pytest
import torch

from autocomp.core.spec import LayerSpec
from autocomp.methods._learned_rounding import Rounding
from autocomp.methods.compose import compress
from autocomp.testing.methods import site

TOKENS = ("rtn-w3g8", "rtn-w2", "rtn-w4g16-sym", "wanda-s50+rtn-w3g8", "wanda-2:4+rtn-w3g8-sym")
OTHERS = ("awq+rtn-w3g8", "rtn-w3g8+lorc-r2", "hqq-w3g8", "quip-w3", "spqr-w3g8", "owq-w3g8-t5")


def rounding(token, dtype=torch.float32):
    weight, stats = site()
    compressed = compress(weight, LayerSpec.parse(token), stats, "float16")
    return Rounding(compressed.grid_leaf(weight), dtype), compressed, weight


def through(value):
    """Round, with the gradient of the identity."""
    return value + (value.round() - value).detach()


def by_autograd(leaf, shift, alpha, beta):
    """The formula of the paper as it stands, for autograd."""
    levels = 2**leaf.bits - 1
    low, high = -leaf.zero * leaf.scale, (levels - leaf.zero) * leaf.scale
    scale = (beta * high - alpha * low) / levels
    scale = scale + (scale.half().float() - scale).detach()
    zero = leaf.zero if leaf.symmetric else through(-alpha * low / scale)
    grouped = leaf.target.view(*leaf.scale.shape, -1)
    codes = through(grouped / scale[..., None] + shift) + zero[..., None]
    dense = scale[..., None] * (codes.clamp(0, levels) - zero[..., None])
    dense = dense.view(leaf.target.shape)
    return dense if leaf.keep is None else dense * leaf.keep


@pytest.mark.parametrize("token", TOKENS)
def test_it_starts_as_nearest_rounding_on_the_stored_grid(token):
    learned, compressed, _ = rounding(token)
    assert torch.equal(learned.operand(), compressed.operands().weight)
    again = learned.compressed()
    for name, tensor in compressed.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name


@pytest.mark.parametrize("token", OTHERS)
def test_it_rounds_what_the_steps_and_the_correction_leave(token):
    """AWQ scales the weight; LoRC corrects it; the operand is what the linear multiplies."""
    learned, compressed, _ = rounding(token)
    assert torch.equal(learned.operand(), learned.compressed().operands().weight)
    kept = compressed.tensors.keys() - {"codes", "base.codes", "inner.codes"}
    for name in kept:
        assert torch.equal(learned.compressed().tensors[name], compressed.tensors[name])


@pytest.fixture(params=[1 << 16, 64], ids=["whole", "rows"])
def chunks(request, monkeypatch):
    """All rows of the example at once, and two at a time."""
    monkeypatch.setattr("autocomp.methods._learned_rounding.CHUNK_WEIGHTS", request.param)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("token", TOKENS)
def test_signs_are_those_of_the_gradient_of_the_formula(token):
    """Step by step for ten random gradients, so that clips, shifts and clamps all take part."""
    learned, compressed, weight = rounding(token)
    leaf, generator = compressed.grid_leaf(weight), torch.Generator().manual_seed(0)
    for _ in range(10):
        before = learned.state()
        parameters = [part.clone().requires_grad_() for part in before]
        dense = by_autograd(leaf, *parameters)
        assert torch.allclose(dense, learned.operand(), rtol=0, atol=1e-6)
        gradient = torch.randn(weight.shape, generator=generator)
        expected = torch.autograd.grad(dense, parameters, gradient)
        learned.descend(gradient, 0.05)
        for name, part, old, slope in zip(
            ("V", "alpha", "beta"), learned.state(), before, expected, strict=True
        ):
            moved = old - 0.05 * slope.sign()
            moved = moved if name == "V" else moved.clamp(0.5, 1)
            # Sums in another order: a slope that is zero but for rounding may have either sign.
            clear = slope.abs() > 1e-4 * slope.abs().max()
            assert torch.allclose(part[clear], moved[clear], rtol=0, atol=1e-6), name


def test_what_is_decoded_is_what_was_tuned():
    """The scales are rounded to float16 while tuning, so the packed weight is the same."""
    learned, _, weight = rounding("rtn-w3g8")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        learned.descend(torch.randn(weight.shape, generator=generator), 0.02)
    compressed = learned.compressed()
    compressed.check()
    assert torch.equal(compressed.to_dense(), learned.operand())


def test_restoring_goes_back():
    learned, _, weight = rounding("rtn-w3g8")
    start, before = learned.state(), learned.operand()
    learned.descend(torch.ones_like(weight), 0.4)
    assert not torch.equal(learned.operand(), before)
    learned.restore(start)
    assert torch.equal(learned.operand(), before)


def test_a_bf16_operand_is_the_rounded_one():
    exact, _, _ = rounding("rtn-w3g8")
    rounded, _, _ = rounding("rtn-w3g8", torch.bfloat16)
    assert torch.equal(rounded.operand(), exact.operand().bfloat16())
