"""Run the shipped contract over every registered model method."""

import pytest

from autocomp.testing import models as contract


@pytest.mark.parametrize("name", contract.names())
@pytest.mark.parametrize(
    "check",
    [
        contract.check_protocol,
        contract.check_tokens,
        contract.check_starts_unchanged,
        contract.check_keeps_formats,
        contract.check_learns,
        contract.check_resumes,
    ],
)
def test_contract(name, check):
    check(name)


def test_there_are_model_methods():
    assert "lora" in contract.names()
