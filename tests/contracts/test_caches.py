"""Run the shipped cache contract over every registered cache method."""

import pytest

from autocomp.testing import caches as contract


@pytest.mark.parametrize("name", contract.names())
@pytest.mark.parametrize(
    "check",
    [
        contract.check_protocol,
        contract.check_tokens,
        contract.check_counts,
        contract.check_path,
        contract.check_pure,
        contract.check_monotone,
        contract.check_bytes,
        contract.check_edges,
    ],
)
def test_contract(name, check):
    check(name)
