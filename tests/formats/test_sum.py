import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.formats.dense import Dense
from autocomp.formats.sum import Sum

SHAPE = (2, 3)
HALF = Dense(SHAPE, "float16")


def test_parts_are_added_and_come_apart_again() -> None:
    base, correction = HALF.pack(torch.full(SHAPE, 2.0)), HALF.pack(torch.full(SHAPE, 0.5))
    both = Sum(SHAPE, HALF, HALF).pack(base, correction)
    assert torch.equal(both.to_dense(), torch.full(SHAPE, 2.5))
    assert both.nbytes == base.nbytes + correction.nbytes
    first, second = both.layout.unpack(both.tensors)
    assert torch.equal(first.to_dense(), base.to_dense())
    assert torch.equal(second.to_dense(), correction.to_dense())


def test_parts_must_fit() -> None:
    other = Dense((2, 4), "float16")
    with pytest.raises(PlanError, match="the parts of a sum"):
        Sum(SHAPE, HALF, other)
    with pytest.raises(PlanError, match="the layout has"):
        Sum(SHAPE, HALF, HALF).pack(
            HALF.pack(torch.ones(SHAPE)), Dense(SHAPE, "float32").pack(torch.ones(SHAPE))
        )
