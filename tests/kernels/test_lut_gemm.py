import pytest
import torch

from autocomp.formats.bcq import Bcq
from autocomp.kernels.lut_gemm import lut_gemm


@pytest.mark.parametrize(
    ("shape", "group", "offset"),
    [
        ((7, 32), 8, "float32"),
        ((1, 48), 24, None),
        ((16, 40), None, "float16"),
        ((5, 19), None, None),
    ],
)
@pytest.mark.parametrize("bits", [1, 3])
def test_the_look_ups_give_the_product_exactly(shape, group, offset, bits):
    generator = torch.Generator().manual_seed(0)
    layout = Bcq(shape, bits, group, offset)
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    scale = torch.randint(1, 64, (shape[0], layout.groups, bits), generator=generator) / 16
    shift = torch.randint(-64, 64, (shape[0], layout.groups), generator=generator) / 16
    weight = layout.pack(codes, scale, shift)
    inputs = torch.randint(-9, 10, (3, shape[1]), generator=generator).double()
    found = lut_gemm(inputs, *(weight.tensors.get(n) for n in ("codes", "scale", "offset")))
    assert torch.equal(found, inputs @ weight.to_dense().double().T)


def test_a_group_of_split_bytes_is_refused():
    weight = Bcq((2, 24), 1, 12).pack(torch.zeros(2, 24, dtype=torch.int64), torch.ones(2, 2, 1))
    with pytest.raises(ValueError, match="whole bytes"):
        lut_gemm(torch.ones(1, 24), weight.tensors["codes"], weight.tensors["scale"], None)
