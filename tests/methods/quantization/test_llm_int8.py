"""The entry's checks: one channel of 256 is 40 times as large as the others."""

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.formats.prepared import Prepared
from autocomp.formats.round_regular import RoundRegular
from autocomp.kernels.int8_outlier_matmul import int8_outlier_matmul, split_outliers
from autocomp.testing.methods import compress

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(64, 256, generator=GENERATOR)
INPUTS = torch.randn(128, 256, generator=GENERATOR)
INPUTS[:, 7] *= 40


def error(token: str) -> float:
    """Relative error of the outputs, multiplied in packed form."""
    packed = compress(f"rtn-w8-sym+{token}", WEIGHT, None, "float16")
    exact = INPUTS @ WEIGHT.T
    found = packed.layout.matmul(packed.tensors, INPUTS)
    return float((found - exact).norm() / exact.norm())


def test_the_error_falls_as_outliers_are_left_alone():
    """Of the weight some is left: 0.0334 against 0.0044 where its columns are kept too."""
    never, twenty, six = (error(f"llmint8-t{threshold}") for threshold in (1000, 20, 6))
    assert never == pytest.approx(0.0334, rel=0.2)
    assert six < twenty < never
    assert six < 0.009
    weight = compress("rtn-w8-sym", WEIGHT, None, "float16")
    exact = INPUTS @ weight.to_dense().T
    layout = Prepared((64, 256), weight.layout, None, RoundRegular(256, 1e-9))
    found = layout.matmul(layout.pack(weight).tensors, INPUTS)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_without_outliers_it_is_absmax_to_the_bit():
    packed = {
        token: compress(f"rtn-w8-sym+{token}", WEIGHT, None, "float16")
        for token in ("llmint8-t1000", "absmax-a8")
    }
    prepared = [each.operands().prepare(INPUTS) for each in packed.values()]
    assert torch.equal(*prepared)
    products = [each.layout.matmul(each.tensors, INPUTS) for each in packed.values()]
    assert torch.equal(*products)
    assert len({each.layout.nbytes for each in packed.values()}) == 1


def test_sums_are_those_of_integers():
    """Codes as large as they get, so wide that fp32 products could lose the last bit."""
    codes = torch.randint(0, 256, (3, 2048), generator=GENERATOR).to(torch.uint8)
    codes[0] = 255
    inputs = torch.randint(-127, 128, (5, 2048), generator=GENERATOR).float()
    inputs[:, 0] = 127
    inputs[0] = 127
    _, rounded, step = split_outliers(inputs, torch.inf)
    assert torch.equal(rounded, inputs)
    sums = rounded.to(torch.int64) @ (codes.to(torch.int64) - 128).T
    scale = torch.ones(3, 1, dtype=torch.float16)
    found = int8_outlier_matmul(inputs, codes, scale, torch.inf)
    assert torch.equal(found, sums.float() * step)


def test_a_token_does_not_depend_on_its_batch():
    step = RoundRegular(256, 6.0)
    together = step.apply(INPUTS, {})
    for row in (0, 5):
        assert torch.equal(step.apply(INPUTS[row : row + 1], {})[0], together[row])
    outlying = INPUTS.abs() >= 6
    assert torch.equal(together[outlying], INPUTS[outlying])
    largest = INPUTS.masked_fill(outlying, 0).abs().amax(dim=1, keepdim=True)
    assert bool(((together - INPUTS).abs() <= largest / 127 / 2 * 1.0001).all())


def test_tokens():
    assert LayerSpec.parse("rtn-w8-sym+llmint8-t6").token() == "rtn-w8-sym+llmint8"
    for text in ("llmint8-t0", "llmint8-6"):
        with pytest.raises(PlanError, match="llmint8"):
            LayerSpec.parse(f"rtn-w8-sym+{text}")
    with pytest.raises(PlanError, match="positive"):
        RoundRegular(8, 0.0)
