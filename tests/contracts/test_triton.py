"""Run every Triton back-end against its reference: interpreted where there is no GPU."""

import pytest

from autocomp.kernels import _triton
from autocomp.testing import kernels as contract

pytestmark = pytest.mark.skipif(not _triton.LOADED, reason="triton is not installed")


@pytest.mark.parametrize("dtype", list(contract.EPSILON), ids=str)
@pytest.mark.parametrize("name", contract.triton_names())
def test_against_the_reference(name, dtype):
    if str(dtype).removeprefix("torch.") not in _triton.DTYPES:
        pytest.skip("interpreted products of bf16 are wrong")
    contract.check_triton(name, dtype)


def test_interpreted_kernels_run_on_request_only():
    if not _triton.INTERPRETED:
        pytest.skip("a GPU is there")
    assert _triton.lacks_triton() == "kernels are interpreted only where a test asks"
    with _triton.interpreting():
        assert _triton.lacks_triton() is None
