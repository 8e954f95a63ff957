import pytest
import torch

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.spec import LayerSpec
from autocomp.formats.bcq import Bcq, signs
from autocomp.methods.compose import compress
from autocomp.testing.methods import site


@pytest.mark.parametrize("token", ["rtn-w2g8", "rtn-w3", "rtn-w4g16-sym", "gptq-w5g8", "rtn-w8"])
def test_a_uniform_weight_is_such_a_sum_exactly(token):
    weight, stats = site()
    uniform = compress(weight, LayerSpec.parse(token), stats, "float16")
    converted = Bcq.of_uniform(uniform)
    converted.check()
    assert torch.equal(converted.to_dense(), uniform.to_dense())
    scale = uniform.tensors["scale"].float()
    found = converted.tensors["scale"].float()
    assert torch.equal(found, scale[..., None] * 2.0 ** (torch.arange(found.shape[2]) - 1))


def test_only_a_uniform_weight_is():
    dense = compress(site()[0], LayerSpec(), None, "float16")
    with pytest.raises(PlanError, match="uniform"):
        Bcq.of_uniform(dense)


@pytest.mark.parametrize(
    ("layout", "bits"),
    [
        (Bcq((64, 512), 4, 128, "float16"), 4 * (1 + 16 / 128) + 16 / 128),
        (Bcq((64, 512), 3, 128), 3 * (1 + 16 / 128)),
        (Bcq((64, 512), 3), 3 * (1 + 16 / 512)),
    ],
)
def test_bits_a_weight(layout, bits):
    assert layout.nbytes * 8 == bits * 64 * 512


def test_code_bits_are_signs():
    assert signs(2).tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]
    packed = Bcq((1, 4), 2).pack(torch.arange(4)[None], torch.tensor([[[2.0, 0.5]]]))
    assert packed.to_dense().tolist() == [[-2.5, 1.5, -1.5, 2.5]]


def test_refusals():
    for wrong in ((0, None, None), (9, None, None), (2, 5, None), (2, None, "int8")):
        with pytest.raises(PlanError):
            Bcq((4, 16), *wrong)
    codes, scale = torch.zeros(4, 16, dtype=torch.int64), torch.ones(4, 1, 2)
    with pytest.raises(PlanError, match="missing"):
        Bcq((4, 16), 2, None, "float16").pack(codes, scale)
    with pytest.raises(NumericalError, match="finite"):
        Bcq((4, 16), 2).pack(codes, scale * 1e6)
