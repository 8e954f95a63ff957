"""Run the shipped contract of data recipes over every registered one."""

import pytest

from autocomp.testing import recipes as contract


@pytest.mark.parametrize("name", contract.names())
@pytest.mark.parametrize(
    "check",
    [
        contract.check_described,
        contract.check_tokens,
        contract.check_shape,
        contract.check_seeded,
    ],
)
def test_contract(name, check):
    check(name)


def test_there_are_recipes():
    assert "selfgen" in contract.names()
