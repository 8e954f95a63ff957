import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.methods.compose import check, compress, layout
from autocomp.methods.structure.bypass import BypassSpec


def test_costs_nothing():
    spec = LayerSpec.parse("bypass")
    check(spec, "subblock", (0, 0))
    assert layout(spec, (0, 0), "float16").nbytes == 0
    assert compress(torch.zeros(0, 0), spec, None, "float16").tensors == {}


def test_takes_no_options():
    assert BypassSpec.parse("bypass") == BypassSpec()
    with pytest.raises(PlanError, match="no options"):
        LayerSpec.parse("bypass-2")
