"""Run the shipped kernel contract over every registered operation."""

import pytest
import torch

from autocomp.core.registry import KERNELS
from autocomp.testing import kernels as contract


@pytest.mark.parametrize("name", list(KERNELS))
def test_registration(name):
    contract.check_registration(name)


@pytest.mark.parametrize("dtype", list(contract.EPSILON), ids=str)
@pytest.mark.parametrize("name", list(KERNELS))
def test_backends(name, dtype):
    contract.check_backends(name, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the cases lie on the processor")
@pytest.mark.parametrize("name", list(KERNELS))
def test_every_backend_that_can_run_here_is_tried(name):
    here = {known.name for known in KERNELS[name].backends if known.why_not_here() is None}
    if contract.cases(name, torch.bfloat16):
        assert here <= contract.reached(name)
