import pytest
import torch

from autocomp.core.errors import ConfigError, PlanError, StoreError
from autocomp.core.sketch import TensorInfo
from autocomp.formats.base import (
    CompressedWeight,
    format_from_json,
    tensor_info,
    torch_dtype,
)
from autocomp.formats.bypass import Bypass
from autocomp.formats.dense import Dense


def test_tensor_info():
    info = tensor_info(torch.zeros((3, 5), dtype=torch.bfloat16))
    assert info == TensorInfo((3, 5), "bfloat16")
    assert info.nbytes == 30


def test_unknown_dtype():
    with pytest.raises(PlanError, match="float17"):
        torch_dtype("float17")
    with pytest.raises(PlanError, match="Tensor"):
        torch_dtype("Tensor")


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,)])
def test_empty_weight_is_refused(shape):
    with pytest.raises(PlanError, match="at least"):
        Dense(shape, "float16")


def test_check_names_the_difference():
    weight = Dense((2, 3), "float16").pack(torch.zeros(2, 3))
    wrong = CompressedWeight(weight.layout, {"weight": torch.zeros(2, 3)})
    with pytest.raises(StoreError, match=r"'weight'.*float16 \(2, 3\), got float32"):
        wrong.check()
    with pytest.raises(StoreError, match="holds the tensors"):
        CompressedWeight(weight.layout, {}).check()


def test_layouts_are_values():
    assert Dense((2, 3), "float16") == Dense((2, 3), "float16")
    assert len({Dense((2, 3), "float16"), Dense((2, 3), "float16"), Bypass((2, 3))}) == 2


def test_description_of_an_unknown_format():
    with pytest.raises(ConfigError, match="dense"):
        format_from_json({"format": "denze", "version": 1})


def test_description_without_a_shape():
    with pytest.raises(StoreError, match="damaged"):
        format_from_json({"format": "dense", "version": 1, "dtype": "float16"})


def test_bypass_costs_nothing():
    weight = Bypass((0, 0)).pack()
    weight.check()
    assert weight.nbytes == weight.layout.nbytes == 0
    assert weight.to_dense().shape == (0, 0)


def test_dense_rounds_to_its_dtype_and_copies():
    source = torch.tensor([[1.0 + 2**-12]])
    weight = Dense((1, 1), "float16").pack(source)
    assert weight.to_dense().item() == 1.0
    same = Dense((1, 1), "float32").pack(source)
    source.zero_()
    assert same.to_dense().item() == 1.0 + 2**-12
