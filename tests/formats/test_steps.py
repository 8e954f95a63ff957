import json

import pytest
import torch

from autocomp.core.errors import ConfigError, PlanError, StoreError
from autocomp.core.registry import STEPS
from autocomp.formats.round_regular import RoundRegular
from autocomp.formats.steps import (
    Permutation,
    Rotation,
    RoundInput,
    Scale,
    _kronecker,
    _rotation,
    _transformed,
    step_from_json,
)

KINDS = ("hadamard", "orthogonal", "full")
WIDTHS = (1, 2, 17, 24, 64, 96, 576)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "step",
    [
        Scale(24),
        Permutation(24),
        Rotation(24, "hadamard"),
        Rotation(24, "orthogonal", 7),
        RoundInput(24, 8),
        RoundInput(24, 4, "tensor"),
        RoundRegular(24, 6.0),
    ],
)
def test_json_round_trip_and_damage(step) -> None:
    data = json.loads(json.dumps(step.to_json()))
    assert step_from_json(data) == step
    assert STEPS[step.name] is type(step)
    with pytest.raises(StoreError, match="version -1"):
        step_from_json({**data, "version": -1})
    with pytest.raises(StoreError, match="damaged"):
        step_from_json({**data, "unknown": 1})
    with pytest.raises(StoreError, match="damaged"):
        step_from_json({key: data[key] for key in data if key != "in_features"})
    with pytest.raises(ConfigError, match="input step"):
        step_from_json({**data, "step": "unknown"})


def test_no_step_is_no_step() -> None:
    assert step_from_json(None) is None


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(PlanError, match="hadamard or orthogonal or full"):
        Rotation(24, "fourier")
    with pytest.raises(PlanError, match="1 bits by 'token'"):
        RoundInput(24, 1)
    with pytest.raises(PlanError, match="'row'"):
        RoundInput(24, 8, "row")


def test_scale_divides_inputs_and_multiplies_columns() -> None:
    inputs, weight = normal(2, 5, 24), normal(7, 24, seed=1)
    tensors = {"scale": torch.rand(24).add(0.5).half()}
    step = Scale(24)
    found = step.apply(inputs, tensors) @ step.absorb(weight, tensors).T
    torch.testing.assert_close(found, inputs @ weight.T, rtol=1e-5, atol=1e-5)
    # absorb and merge round once each: two units in the last place
    merged = step.merge(step.absorb(weight, tensors), tensors)
    torch.testing.assert_close(merged, weight, rtol=2**-22, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_rotation_is_orthogonal_and_undone_by_the_weight(kind: str, width: int) -> None:
    step = Rotation(width, kind, 3)
    unit = torch.eye(width, dtype=torch.float64)
    matrix = step.absorb(unit, {}).T  # row i is T e_i
    assert float((matrix @ matrix.T - unit).abs().max()) < 1e-14
    assert float((step.merge(unit, {}) - matrix).abs().max()) < 1e-14
    inputs = normal(3, width)
    torch.testing.assert_close(
        step.apply(inputs, {}), (inputs.double() @ matrix.T).float(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_kind_fix_the_rotation(kind: str) -> None:
    inputs = normal(3, 96)
    first = Rotation(96, kind, 1).apply(inputs, {})
    _rotation.cache_clear()
    assert torch.equal(Rotation(96, kind, 1).apply(inputs, {}), first)
    assert not torch.allclose(Rotation(96, kind, 2).apply(inputs, {}), first)


@pytest.mark.parametrize(
    ("width", "kind", "sizes"),
    [
        (4096, "hadamard", [64, 64]),
        (1536, "hadamard", [32, 16, 3]),
        (11008, "hadamard", [16, 16, 43]),
        (1536, "orthogonal", [32, 48]),
    ],
)
def test_factors_are_small(width: int, kind: str, sizes: list[int]) -> None:
    factors, _, _ = _rotation(width, kind, 0, torch.float32, torch.device("cpu"))
    assert [len(factor) for factor in factors] == sizes


def test_hadamard_spreads_one_channel_evenly_over_its_part() -> None:
    """A unit vector comes out with entries of one magnitude: 64 = 8 · 8 needs no random factor."""
    turned = Rotation(64, "hadamard").apply(torch.eye(64), {})
    torch.testing.assert_close(turned.abs(), torch.full((64, 64), 1 / 8))


def test_rotation_first_used_in_inference_mode_serves_training() -> None:
    _rotation.cache_clear()
    step = Rotation(24, "hadamard")
    with torch.inference_mode():
        step.apply(normal(2, 24), {})
    inputs = normal(2, 24).requires_grad_()
    step.apply(inputs, {}).square().sum().backward()
    torch.testing.assert_close(inputs.grad, 2 * inputs.detach())


def test_rounding_by_hand() -> None:
    rows = torch.tensor([[7.0, -3.4, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [-0.7, 0.1, 0.36, 0.2]])
    expected = torch.tensor([[7, -3, 0, 2], [0, 0, 0, 0], [-0.7, 0.1, 0.4, 0.2]])
    found = RoundInput(4, 4).apply(rows, {})
    torch.testing.assert_close(found, expected)
    static = RoundInput(4, 4, "tensor").apply(rows, {"scale": torch.tensor([0.5])})
    torch.testing.assert_close(static[0], torch.tensor([3.5, -3.5, 0.5, 1.5]))


def test_a_token_does_not_depend_on_its_batch() -> None:
    rows = normal(6, 24) * torch.tensor([1.0, 100, 1, 0.01, 1, 1])[:, None]
    step = RoundInput(24, 8)
    together = step.apply(rows, {})
    assert all(
        torch.equal(step.apply(row[None], {})[0], together[i]) for i, row in enumerate(rows)
    )
    # half a step of the token's own scale
    assert bool(((together - rows).abs() <= rows.abs().amax(1, True) / 127 / 2 * 1.0001).all())


def test_rounding_passes_the_gradient() -> None:
    rows = normal(3, 24).requires_grad_()
    step = RoundInput(24, 4)
    rounded = step.apply(rows, {})
    assert torch.equal(rounded.detach(), step.apply(rows.detach(), {}))
    (gradient,) = torch.autograd.grad(rounded.sum(), rows)
    assert torch.equal(gradient, torch.ones_like(gradient))


@pytest.mark.parametrize("step", [Rotation(24, "hadamard"), RoundInput(24, 8)])
def test_inputs_keep_dtype_and_values(step) -> None:
    inputs = normal(2, 3, 24).bfloat16()
    before = inputs.clone()
    assert step.apply(inputs, {}).dtype == torch.bfloat16
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("width", [64, 48, 7])
def test_one_transform_is_the_product_of_the_factors(width):
    factors, *_ = _rotation(width, "hadamard", 3, torch.float64, torch.device("cpu"))
    rows = torch.randn(2, 5, width, dtype=torch.float64)
    expected = _kronecker(rows, factors)
    assert torch.allclose(_transformed(rows, factors), expected, atol=1e-12)
