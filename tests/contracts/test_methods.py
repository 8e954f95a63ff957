"""Run the shipped method contract over every registered method."""

import pytest

from autocomp.core.method import SiteMethod
from autocomp.core.registry import METHODS
from autocomp.testing import methods as contract


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize(
    "check",
    [
        contract.check_described,
        contract.check_tokens,
        contract.check_pure,
        contract.check_identity,
        contract.check_monotone,
        contract.check_edges,
        contract.check_needs,
        contract.check_kinds,
    ],
)
def test_contract(name, check):
    check(name)


@pytest.mark.parametrize("name", list(METHODS))
def test_bytes(name, tmp_path):
    contract.check_bytes(name, tmp_path)


def test_same_bytes_in_another_process():
    contract.check_other_process(list(METHODS))


@pytest.mark.parametrize("name", list(METHODS))
def test_is_a_site_method(name):
    assert isinstance(METHODS[name](), SiteMethod)


def test_tokens_of_all_methods_differ():
    tokens = [token for name in METHODS for token in contract.tokens(name)]
    assert len(tokens) == len(set(tokens))
