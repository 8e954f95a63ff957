"""Run the shipped format contract over every registered format."""

import pytest

from autocomp.core.registry import FORMATS
from autocomp.testing import formats as contract


@pytest.fixture(params=list(FORMATS))
def examples(request):
    found = contract.examples(request.param)
    assert found
    return found


@pytest.mark.parametrize(
    "check",
    [
        contract.check_layout,
        contract.check_decoding,
        contract.check_operands,
        contract.check_matmul,
        contract.check_description,
        contract.check_damage,
        contract.check_fake_quant,
        contract.check_store,
        contract.check_grid_leaf,
    ],
)
def test_contract(examples, check):
    for example in examples:
        check(example)


def test_file(examples, tmp_path):
    for example in examples:
        contract.check_file(example, tmp_path)


def test_registered_under_its_own_name():
    for name, kind in FORMATS.items():
        assert kind.name == name


def test_same_seed_same_tensors():
    first, second = (contract.examples("bitmask", seed=3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for name, tensor in one.weight.tensors.items():
            assert tensor.equal(other.weight.tensors[name])
