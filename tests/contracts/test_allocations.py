"""Every registered allocation fulfils its contract."""

from collections.abc import Callable

import pytest

from autocomp.core.registry import ALLOCATIONS
from autocomp.search.allocations.base import Allocation
from autocomp.testing import allocations as suite


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_described(name: str) -> None:
    suite.check_described(name)


@pytest.mark.parametrize(
    "check",
    [suite.check_target, suite.check_monotone, suite.check_units],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_contract(name: str, check: Callable[[Allocation], None]) -> None:
    check(ALLOCATIONS[name]())
