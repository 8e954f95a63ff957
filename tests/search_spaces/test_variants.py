import pytest

from autocomp.core.errors import PlanError
from autocomp.core.registry import load_object
from autocomp.testing.spaces import check_assignment, option_space, random_assignment, toy_sketch

VariantSpace = load_object("autocomp.search_spaces._variants:VariantSpace")
NAMES = ("base", "flap-p80", "wandawidth-p80")


def spaces():
    return [VariantSpace(option_space("joint", toy_sketch()), NAMES, name) for name in NAMES]


def test_the_laws_hold_for_every_variant():
    for space in spaces():
        for seed in range(5):
            params = random_assignment(space, seed) | {"variant": space.index}
            check_assignment(space, params)
            assert space.decode(params).variant == space.variant
            assert space.encode(space.decode(params))["variant"] == space.index


def test_equal_options_of_two_variants_are_two_plans():
    first, second, _ = spaces()
    params = random_assignment(first.options, 0)
    assert first.decode(params).layers == second.decode(params).layers
    assert first.decode(params).digest != second.decode(params).digest


def test_the_variant_is_an_integer_beside_the_groups():
    first, second, _ = spaces()
    ranges = first.distributions()
    assert (ranges["variant"].low, ranges["variant"].high) == (0, 2)
    assert set(ranges) == {"variant", *first.options.distributions()}
    assert second.log10_size == second.options.log10_size


def test_another_variants_assignment_and_plan_are_refused():
    first, second, _ = spaces()
    params = first.encode(first.decode(random_assignment(first, 0) | {"variant": 0}))
    with pytest.raises(PlanError, match="variant 0"):
        second.decode(params)
    with pytest.raises(PlanError, match="flap-p80"):
        second.encode(first.decode(params))
