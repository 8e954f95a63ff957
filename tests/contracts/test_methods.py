"""Run the shipped contracts over every registered method that fills a slot of a linear."""

import pytest

from autocomp.core.method import InputMethod, RefinementMethod, SiteMethod
from autocomp.core.registry import METHODS
from autocomp.testing import methods as contract

PROTOCOLS = {"site": SiteMethod, "input": InputMethod, "refinement": RefinementMethod}
LAYER = contract.names(*PROTOCOLS)


@pytest.mark.parametrize("name", list(METHODS))
def test_described(name):
    contract.check_described(name)


@pytest.mark.parametrize("name", LAYER)
@pytest.mark.parametrize(
    "check",
    [
        contract.check_applies,
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


@pytest.mark.parametrize("name", LAYER)
def test_bytes(name, tmp_path):
    contract.check_bytes(name, tmp_path)


@pytest.mark.parametrize("name", [n for n in LAYER if METHODS[n].spec.slot == "input"])
def test_input_is_undone_by_the_weight(name):
    contract.check_preserves(name)


def test_same_bytes_in_another_process():
    contract.check_other_process(LAYER)


@pytest.mark.parametrize(("scope", "protocol"), PROTOCOLS.items())
def test_fulfils_its_protocol(scope, protocol):
    for name in contract.names(scope):
        assert isinstance(METHODS[name](), protocol)


def test_tokens_of_all_methods_differ():
    tokens = [token for name in LAYER for token in contract.tokens(name)]
    assert len(tokens) == len(set(tokens))
