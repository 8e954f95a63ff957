import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.formats.uniform import Uniform
from autocomp.formats.uniform_tensor import UniformTensor


def weight(shape=(6, 16), bits=4):
    codes = torch.arange(shape[0] * shape[1]).view(shape) % 2**bits
    return UniformTensor(shape, bits).pack(codes, torch.tensor([[0.5]]), torch.tensor([[3]]))


def test_decodes_on_one_grid():
    expected = 0.5 * (torch.arange(96).view(6, 16) % 16 - 3)
    assert torch.equal(weight().to_dense(), expected)


def test_two_scalars_beside_the_codes():
    packed = weight()
    assert packed.nbytes == 6 * 8 + 2 + 1
    assert packed.nbytes == Uniform((6, 16), 4).nbytes - 3 * 5
    assert packed.tensors["zero"].item() == 3


def test_rows_alike_are_the_same_weight():
    packed = weight()
    rows = packed.layout.rows_alike
    assert torch.equal(rows.to_dense(packed.layout.spread(packed.tensors)), packed.to_dense())


def test_bits_that_are_not_packed_are_refused():
    with pytest.raises(PlanError, match="bits a code, got 7"):
        UniformTensor((6, 16), 7)
