"""Run the shipped architecture contract over every registered architecture method."""

import pytest

from autocomp.testing import architectures as contract


@pytest.mark.parametrize("name", contract.names())
@pytest.mark.parametrize(
    "check",
    [
        contract.check_described,
        contract.check_tokens,
        contract.check_edit,
        contract.check_identity,
        contract.check_pure,
        contract.check_needs,
        contract.check_damage,
    ],
)
def test_contract(name, check):
    check(name)
