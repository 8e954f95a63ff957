import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.formats.dense import Dense
from autocomp.formats.prepared import Prepared
from autocomp.formats.steps import Rotation, RoundInput, Scale

SHAPE = (3, 8)
INNER = Dense(SHAPE, "float16")


def test_the_input_is_changed_before_it_is_rounded() -> None:
    weight = INNER.pack(torch.eye(3, 8))
    layout = Prepared(SHAPE, INNER, Scale(8), RoundInput(8, 4))
    scale = torch.tensor([4.0, 1, 1, 1, 1, 1, 1, 1]).half()
    found = layout.pack(weight, {"scale": scale}).operands()
    assert found.prepare is not None
    inputs = torch.tensor([[28.0, 3.4, -7.0, 0, 0, 0, 0, 0]])
    # 28/4, 3.4 and −7 on the grid of step 1
    assert (found.prepare(inputs) @ found.weight.T).tolist() == [[7.0, 3.0, -7.0]]


def test_parts_must_fit() -> None:
    with pytest.raises(PlanError, match="needs an input step or a rounded input"):
        Prepared(SHAPE, INNER)
    with pytest.raises(PlanError, match="steps of 8 inputs"):
        Prepared(SHAPE, INNER, Scale(7))
    with pytest.raises(PlanError, match="inner weight of that shape"):
        Prepared((3, 9), INNER, None, RoundInput(9, 8))
    with pytest.raises(PlanError, match="the layout has"):
        Prepared(SHAPE, INNER, Rotation(8, "hadamard")).pack(
            Dense(SHAPE, "float32").pack(torch.ones(SHAPE))
        )


def test_steps_cost_their_tensors() -> None:
    assert Prepared(SHAPE, INNER, Scale(8)).nbytes == INNER.nbytes + 2 * 8
    assert Prepared(SHAPE, INNER, Rotation(8, "hadamard")).nbytes == INNER.nbytes
    assert Prepared(SHAPE, INNER, None, RoundInput(8, 8)).nbytes == INNER.nbytes
    assert Prepared(SHAPE, INNER, None, RoundInput(8, 8, "tensor")).nbytes == INNER.nbytes + 4
