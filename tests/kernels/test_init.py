import importlib.util
from pathlib import Path

import pytest

import autocomp.kernels


def test_refuses_another_name():
    path = Path(autocomp.kernels.__file__)
    spec = importlib.util.spec_from_file_location("kernels", path)
    with pytest.raises(ImportError, match=r"autocomp\.kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
