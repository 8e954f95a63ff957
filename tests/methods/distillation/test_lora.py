"""LoRA recovery: its token, its parameters and its schedule."""

import pytest
import torch
from torch import Generator

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.method import ModelContext
from autocomp.formats.bitmask import Bitmask
from autocomp.formats.uniform import Uniform
from autocomp.methods.distillation.lora import Lora, LoraSpec
from autocomp.testing.models import ToyLinear


def uniform(shape=(8, 16), bits=3, group=8):
    generator = Generator().manual_seed(0)
    groups = shape[1] // group
    codes = torch.randint(0, 1 << bits, shape, generator=generator)
    scale = torch.rand((shape[0], groups), generator=generator) + 0.1
    zero = torch.randint(0, 1 << bits, (shape[0], groups), generator=generator)
    return Uniform(shape, bits, group).pack(codes, scale, zero)


def steps(weight, spec, backward=None):
    linear = ToyLinear(weight)
    read = []

    def step(windows):
        read.append(list(windows))
        loss = linear.held.square().mean()
        loss.backward()
        return loss.item()

    context = ModelContext({"site": linear}, 5, backward or step, seed=0)
    return list(Lora().train(spec, context)), read


@pytest.mark.parametrize(
    ("token", "spec"),
    [
        ("lora-r8-300", LoraSpec(8, 300)),
        ("lora-r16-20-b2", LoraSpec(16, 20, 2)),
        ("lora-r1-5-lr0.00025", LoraSpec(1, 5, rate=0.00025)),
        ("lora-r1-5-b3-lr0.02", LoraSpec(1, 5, 3, 0.02)),
    ],
)
def test_token(token, spec):
    assert LoraSpec.parse(token) == spec
    assert spec.token() == token


@pytest.mark.parametrize("token", ["lora-r8", "lora-8-300", "lora-r0-300", "lora-r8-300-b0"])
def test_tokens_that_are_refused(token):
    with pytest.raises(PlanError, match="lora"):
        LoraSpec.parse(token)


def test_trainable_parameters():
    """rank · (in + out) for each matrix, and one ratio for each of its groups."""
    (last,) = steps(uniform(), LoraSpec(2, 1))[0]
    trained = [t for name, t in last.state().items() if name.count("/") == 1]
    assert sum(t.numel() for t in trained) == 2 * (8 + 16) + 8 * 2
    mask = torch.arange(128).view(8, 16) % 3 != 0
    weight = Bitmask((8, 16), int(mask.sum()), "float16").pack(mask, torch.ones(8, 16))
    (last,) = steps(weight, LoraSpec(2, 1))[0]
    trained = [t for name, t in last.state().items() if name.count("/") == 1]
    assert sum(t.numel() for t in trained) == 2 * (8 + 16)


def test_zeros_of_a_mask_stay_though_values_move():
    mask = torch.arange(128).view(8, 16) % 3 != 0
    weight = Bitmask((8, 16), int(mask.sum()), "float16").pack(mask, torch.ones(8, 16))
    stored = steps(weight, LoraSpec(2, 10, rate=0.1))[0][-1].weights()["site"]
    dense = stored.to_dense()
    assert not dense[~mask].any()
    assert not torch.equal(dense, weight.to_dense())


def test_every_epoch_reads_every_window_once_in_an_order_of_its_own():
    _, read = steps(uniform(), LoraSpec(1, 10, 1))
    order = [window for windows in read for window in windows]
    assert sorted(order[:5]) == sorted(order[5:]) == [0, 1, 2, 3, 4]
    assert order[:5] != order[5:]
    _, pairs = steps(uniform(), LoraSpec(1, 5, 2))
    assert [window for windows in pairs for window in windows] == order


def test_a_loss_that_is_not_finite_ends_the_training():
    with pytest.raises(NumericalError, match="step 1"):
        steps(uniform(), LoraSpec(1, 3), backward=lambda windows: float("nan"))
