"""Run the shipped space contract over every registered space."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.core.registry import SPACES
from autocomp.testing.spaces import (
    check_assignment,
    check_lists,
    option_space,
    random_assignment,
    toy_sketch,
)

SKETCHES = {
    "plain": toy_sketch(),
    "fused": toy_sketch(fused=True),
    "untied": toy_sketch(tied=False),
    "odd width": toy_sketch(hidden=24),
}


@pytest.fixture(params=list(SPACES))
def name(request):
    return request.param


@pytest.fixture(params=list(SKETCHES))
def sketch(request):
    return SKETCHES[request.param]


def test_lists(name, sketch):
    check_lists(sketch, SPACES[name].candidates(sketch))


def test_laws(name, sketch):
    space = option_space(name, sketch)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32))
    def laws(seed):
        check_assignment(space, random_assignment(space, seed))

    laws()


def test_describes_itself(name):
    space = SPACES[name]
    assert space.name == name
    assert space.summary
    assert not space.summary.endswith(".")
