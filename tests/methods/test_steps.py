import pytest
import torch

from autocomp.core.method import Reader
from autocomp.core.spec import DENSE
from autocomp.core.stats import Needs
from autocomp.formats.steps import Rotation, Scale
from autocomp.methods._steps import needs_behind, output_error, stepped
from autocomp.testing.methods import output_error as hessian_error
from autocomp.testing.methods import site

STEPS = (Scale(32), Rotation(32, "hadamard"), Rotation(32, "orthogonal", 3))
FIELDS = ("hessian", "norms", "mean", "absmean", "absmax", "sample")


def tensors_of(step, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand(info.shape, generator=generator) + 0.5).half()
        for name, info in step.tensors().items()
    }


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.to_json())
def test_statistics_are_those_of_the_changed_input(step):
    """The sample holds every input, so all of them can be computed from what it becomes."""
    stats, tensors = site()[1], tensors_of(step)
    found, inputs = stepped(stats, step, tensors), step.apply(stats.sample, tensors)
    expected = {
        "hessian": inputs.T @ inputs / len(inputs),
        "norms": inputs.square().mean(dim=0).sqrt(),
        "mean": inputs.mean(dim=0),
        "absmean": inputs.abs().mean(dim=0),
        "absmax": inputs.abs().amax(dim=0),
        "sample": inputs,
    }
    for field in FIELDS:
        torch.testing.assert_close(getattr(found, field), expected[field], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.hessian, found.hessian.T)
    assert found.tokens == stats.tokens
    assert found.derived is not stats.derived


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.to_json())
@pytest.mark.parametrize("need", [need for need in Needs if need.value in FIELDS])
def test_what_is_needed_is_enough(step, need):
    """A statistic of ``T x`` is the same whether or not others than those needed are there."""
    stats, tensors = site()[1], tensors_of(step)
    from_all = getattr(stepped(stats, step, tensors), need.value)
    needed = needs_behind(step, frozenset({need}))
    lean = type(stats)(**{other.value: getattr(stats, other.value) for other in needed})
    assert torch.equal(getattr(stepped(lean, step, tensors), need.value), from_all)


def test_equal_steps_share_their_statistics():
    stats, step = site()[1], Scale(32)
    first = stepped(stats, step, tensors_of(step))
    assert stepped(stats, step, tensors_of(step)) is first
    other = stepped(stats, step, tensors_of(step, seed=1))
    assert not torch.equal(other.hessian, first.hessian)
    assert stepped(None, step, tensors_of(step)) is None


def test_output_error_without_rounding_of_inputs_is_that_of_the_weight():
    weight, stats = site()
    step = Scale(32)
    tensors = tensors_of(step)
    rounded = (weight * tensors["scale"]).round()
    reader = Reader(weight, DENSE, lambda scaled, _: scaled.round(), lambda inputs, _: inputs)
    expected = hessian_error(weight, rounded / tensors["scale"], stats)
    assert output_error(reader, step, tensors, stats) == pytest.approx(expected, rel=1e-4)
