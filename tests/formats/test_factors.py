import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.formats.dense import Dense
from autocomp.formats.factors import Factors
from autocomp.formats.uniform import Uniform
from autocomp.formats.uniform_tensor import UniformTensor
from autocomp.kernels.low_rank_matmul import Packed, low_rank_matmul


def product(left: torch.Tensor, right: torch.Tensor):
    layouts = Dense(tuple(left.shape), "float32"), Dense(tuple(right.shape), "float32")
    layout = Factors((left.shape[0], right.shape[1]), left.shape[1], *layouts)
    return layout.pack(layouts[0].pack(left), layouts[1].pack(right))


def test_bytes_and_names():
    layout = Factors((6, 16), 8, Dense((6, 8), "float16"), Uniform((8, 16), 4, 8))
    assert list(layout.tensors()) == ["left.weight", "right.codes", "right.scale", "right.zero"]
    assert layout.nbytes == 6 * 8 * 2 + 8 * (8 + 2 * 2 + 1)


def test_unpack_inverts_pack():
    weight = product(torch.randn(4, 2), torch.randn(2, 5))
    left, right = weight.layout.unpack(weight.tensors)
    assert weight.layout.pack(left, right).tensors.keys() == weight.tensors.keys()
    assert torch.equal(left.to_dense() @ right.to_dense(), weight.to_dense())


def test_shapes_must_multiply():
    with pytest.raises(PlanError, match=r"\(6, 4\) and \(4, 16\)"):
        Factors((6, 16), 4, Dense((6, 4), "float16"), Dense((5, 16), "float16"))


def test_factors_of_another_layout():
    weight = product(torch.randn(4, 2), torch.randn(2, 5))
    left, right = weight.layout.unpack(weight.tensors)
    with pytest.raises(PlanError, match="the layout has"):
        weight.layout.pack(right, left)


def test_fake_quant_is_the_best_fit_in_the_stored_basis():
    left = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    weight = product(left, torch.ones(2, 5))
    trained = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    projected = weight.layout.fake_quant(trained, weight.tensors)
    residual = trained - projected
    assert (left.T @ residual).abs().max() < 1e-5
    assert torch.linalg.matrix_rank(projected) == 2


def test_packed_factors_are_multiplied_by_the_operation_of_dense_ones():
    """Codes on grids of rows or of the whole factor go into the kernel operation as they are."""
    inputs = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    left = UniformTensor((6, 8), 4).pack(
        torch.arange(48).view(6, 8) % 16, torch.tensor([[0.5]]), torch.tensor([[7]])
    )
    right = Uniform((8, 16), 3, symmetric=True).pack(
        torch.arange(128).view(8, 16) % 8, torch.full((8, 1), 0.25)
    )
    weight = Factors((6, 16), 8, left.layout, right.layout).pack(left, right)
    found = weight.layout.matmul(weight.tensors, inputs)
    sides = left.layout.spread(left.tensors)
    operands = (
        Packed(sides["codes"], sides["scale"], sides["zero"], 4),
        Packed(right.tensors["codes"], right.tensors["scale"], None, 3),
    )
    assert torch.equal(found, low_rank_matmul(inputs, *operands))
    assert torch.allclose(found, inputs @ weight.to_dense().T, atol=1e-4)
