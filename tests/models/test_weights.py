import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autocomp.core.errors import PlanError
from autocomp.models import get_weight, set_weight


def holder() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"linear": nn.Linear(3, 5), "conv": Conv1D(5, 3), "table": nn.Embedding(7, 4)}
    )


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_weights_are_out_by_in(name: str) -> None:
    model, x = holder(), torch.randn(2, 3)
    weight = get_weight(model, name)
    assert weight.shape == (5, 3)
    module = model[name]
    torch.testing.assert_close(module(x), x @ weight.T + module.bias)


@pytest.mark.parametrize("name", ["linear", "conv", "table"])
def test_set_then_get(name: str) -> None:
    model = holder().to(torch.float16)
    storage = model[name].weight
    dense = torch.randn(get_weight(model, name).shape)
    set_weight(model, name, dense)
    assert torch.equal(get_weight(model, name), dense.half())
    assert model[name].weight is storage


def test_tied_weights_stay_tied() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["table"].weight
    set_weight(model, "table", torch.ones(7, 4))
    assert torch.equal(get_weight(model, "head"), torch.ones(7, 4))


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(PlanError, match=r"conv: the weight has shape \(5, 3\), got \(3, 5\)"):
        set_weight(holder(), "conv", torch.zeros(3, 5))
