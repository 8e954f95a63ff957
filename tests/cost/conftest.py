"""Sketches of tiny models."""

from collections.abc import Callable

import pytest

from autocomp.core.sketch import Sketch
from autocomp.models import sketch_of
from autocomp.models.tiny import FAMILIES, tiny


@pytest.fixture(scope="session")
def sketch_of_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sketch]:
    """Return the sketch of a tiny model of a given family, built once."""
    sketches: dict[str, Sketch] = {}

    def sketch(family: str) -> Sketch:
        if family not in sketches:
            folder = tmp_path_factory.mktemp("tiny") / family
            sketches[family] = sketch_of(str(tiny(family, folder)))
        return sketches[family]

    return sketch


@pytest.fixture(params=FAMILIES)
def tiny_sketch(
    request: pytest.FixtureRequest, sketch_of_family: Callable[[str], Sketch]
) -> Sketch:
    """The sketch of a tiny model of every family."""
    return sketch_of_family(request.param)
