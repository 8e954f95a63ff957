import json
import math
from pathlib import Path

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.kernels.bits import unpack_bits
from autocomp.methods.quantization.hqq import HqqSpec
from autocomp.testing.methods import compress

REFERENCE = json.loads(Path(__file__).with_name("hqq_reference.json").read_text())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_are_those_of_the_authors(bits):
    """Their code ends on the zeros of its last step, ours on the best: the codes agree here."""
    weight = torch.tensor(
        [
            [0.2 * math.sin(1.7 * i + 0.9 * j * j + 0.3 * i * j) ** 3 for j in range(64)]
            for i in range(16)
        ]
    )
    expected = REFERENCE["bits"][str(bits)]
    found = compress(f"hqq-w{bits}g32", weight, None, "float16")
    codes = unpack_bits(found.tensors["codes"], bits, 64)
    assert ["".join(f"{code:x}" for code in row) for row in codes.tolist()] == expected["codes"]
    zeros = torch.tensor(expected["zero"]).view(16, 2)
    assert torch.allclose(found.tensors["zero"].float(), zeros, rtol=0, atol=5e-3)
    error = float((found.to_dense() - weight).abs().mean())
    assert error == pytest.approx(expected["mean_absolute_error"], rel=1e-3)


def test_lower_mean_error_than_the_grid_it_starts_from():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) ** 3
    low, high = weight.aminmax(dim=1, keepdim=True)
    scale = (high - low) / 7
    start = ((weight - low) / scale).round() * scale + low
    found = compress("hqq-w3g64", weight, None, "float16").to_dense()
    assert float((found - weight).abs().mean()) < 0.95 * float((start - weight).abs().mean())


def test_a_group_of_equal_weights_is_kept():
    weight = torch.full((2, 16), 0.75)
    dense = compress("hqq-w3g8", weight, None, "float16").to_dense()
    assert torch.equal(dense, weight)


def test_refusals():
    for bits, size in ((7, None), (4, 0)):
        with pytest.raises(PlanError, match="hqq: bits"):
            HqqSpec(bits, size)
