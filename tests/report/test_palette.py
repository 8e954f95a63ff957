"""Colours and optional imports."""

import pytest

from autocomp.core.errors import ConfigError
from autocomp.report.palette import KNOWN, OTHERS, colours, optional


def test_known_families_keep_their_colour():
    assert colours(["low-rank", "quantized"])["quantized"] == KNOWN["quantized"]


def test_unknown_families_get_distinct_colours():
    found = colours(["a", "b", "quantized", "c", "a"])
    assert len(set(found.values())) == 4
    assert found["a"] == OTHERS[0]


def test_a_missing_extra_is_one_line_that_names_it():
    with pytest.raises(ConfigError, match=r"pip install 'autocomp\[report\]'") as caught:
        optional("no_such_plotting_library.part")
    assert "\n" not in str(caught.value)
