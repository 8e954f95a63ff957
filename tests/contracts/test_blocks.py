"""Run the shipped contract over every registered method that tunes blocks."""

import pytest

from autocomp.testing import blocks as contract
from autocomp.testing.methods import names


@pytest.mark.parametrize("name", names("block"))
@pytest.mark.parametrize(
    "check",
    [
        contract.check_applies,
        contract.check_identity,
        contract.check_formats,
        contract.check_improves,
        contract.check_pure,
    ],
)
def test_contract(name, check):
    check(name)
