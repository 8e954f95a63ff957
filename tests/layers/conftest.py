"""Tiny models shared by the tests of the layers."""

from collections.abc import Callable

import pytest
import torch

from autocomp.models import LoadedModel, load
from autocomp.models.tiny import FAMILIES, tiny


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Load a tiny model of a given family, fp32; written once, a fresh instance each time."""
    folders = {}

    def loaded(family: str) -> LoadedModel:
        if family not in folders:
            folders[family] = tiny(family, tmp_path_factory.mktemp("tiny") / family)
        return load(str(folders[family]), dtype=torch.float32)

    return loaded


@pytest.fixture(params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest, tiny_of: Callable) -> LoadedModel:
    """A tiny model of every family, fp32."""
    return tiny_of(request.param)
