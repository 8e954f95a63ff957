import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.methods.quantization.nf import NfSpec
from autocomp.testing.methods import compress


def test_nf4_is_written_without_its_defaults():
    assert NfSpec(4).token() == "nf-w4"
    assert NfSpec.parse("nf-w4b64") == NfSpec(4)


def test_double_quantization_costs_little():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def lost(token):
        return float((compress(token, weight, None, "float16").to_dense() - weight).norm())

    assert lost("nf-w4-single") < lost("nf-w4") < 1.01 * lost("nf-w4-single")


def test_refusals():
    for bits, block in ((1, 64), (5, 64), (4, 0)):
        with pytest.raises(PlanError, match="nf: bits"):
            NfSpec(bits, block)
