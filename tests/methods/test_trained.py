"""Trained forms of every registered format start at what is stored and end in the same format."""

import pytest
import torch
from torch import Generator

from autocomp.core.registry import FORMATS
from autocomp.formats.uniform import Uniform
from autocomp.methods._trained import trained
from autocomp.testing.formats import examples

STORED = [name for name in FORMATS if name != "bypass"]


def start(weight, rank=3):
    return trained(weight, rank, Generator().manual_seed(0))


def moved(weight):
    """Return the trained form after a change of all parameters, large enough to change codes."""
    form, generator = start(weight), Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in form.named_parameters():
            size = 0.1 if name.endswith("ratio") else 0.5
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return form


@pytest.mark.parametrize("name", STORED)
def test_training_starts_at_what_is_stored(name):
    for example in examples(name):
        form = start(example.weight)
        assert torch.equal(form(), example.weight.operands().weight)
        for local, tensor in form.stored().tensors.items():
            assert torch.equal(tensor, example.weight.tensors[local]), local


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_is_what_was_multiplied(name):
    changed = 0
    for example in examples(name):
        form = moved(example.weight)
        stored = form.stored()
        stored.check()
        assert stored.layout == example.weight.layout
        assert stored.nbytes == example.weight.nbytes
        assert torch.equal(stored.operands().weight, form().detach())
        changed += not torch.equal(stored.to_dense(), example.weight.to_dense())
        for local, tensor in stored.tensors.items():
            if local.rpartition(".")[2] in ("mask", "index", "zero"):
                assert torch.equal(tensor, example.weight.tensors[local]), f"{local} did not stay"
    assert changed


@pytest.mark.parametrize("name", STORED)
def test_every_parameter_gets_a_gradient(name):
    for example in examples(name):
        form = moved(example.weight)
        form().square().sum().backward()
        for local, parameter in form.named_parameters():
            assert bool(torch.isfinite(parameter.grad).all()), local
            assert bool(parameter.grad.any()), local


def test_gradients_of_codes_and_scales():
    """dL/dρ = s Σ g (q − z) in a group, and dL/dB = m ⊙ (g Aᵀ), as if nothing were rounded."""
    shape, codes = (2, 8), torch.arange(16).view(2, 8) % 8
    scale, zero = torch.tensor([[0.5, 0.25], [0.125, 1.0]]), torch.tensor([[4, 3], [2, 5]])
    weight = Uniform(shape, 3, 4).pack(codes, scale, zero)
    form = start(weight, rank=1)
    gradient = torch.randn(shape, generator=Generator().manual_seed(2))
    (form() * gradient).sum().backward()
    whole = (codes.view(2, 2, 4) - zero[..., None]).float()
    expected = scale * (gradient.view(2, 2, 4) * whole).sum(dim=-1)
    assert torch.allclose(form.ratio.grad, expected, rtol=1e-6)
    size = weight.to_dense().square().mean(dim=1, keepdim=True).sqrt()
    assert torch.allclose(form.change.up.grad, size * (gradient @ form.change.down.T), rtol=1e-5)
    assert not form.change.down.grad.any()


def test_the_rank_is_at_most_that_of_the_matrix():
    weight = Uniform((2, 8), 4).pack(torch.ones(2, 8), torch.ones(2, 1), torch.zeros(2, 1))
    assert start(weight, rank=16).change.up.shape == (2, 2)
