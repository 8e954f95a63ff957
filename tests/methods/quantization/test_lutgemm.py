import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.methods.quantization.lutgemm import LutGemmSpec
from autocomp.testing.methods import compress, site


def test_weighting_lowers_the_weighted_error():
    weight, stats = site()
    importance = stats.norms.square()

    def lost(token):
        change = compress(token, weight, stats, "float16").to_dense() - weight
        return float((importance * change.square()).sum())

    assert lost("lutgemm-w2-weighted") < lost("lutgemm-w2")


def test_an_offset_helps_where_weights_are_not_centred():
    weight = site()[0] + 5

    def lost(token):
        return float((compress(token, weight, None, "float16").to_dense() - weight).norm())

    assert lost("lutgemm-w2g16-offset") < 0.6 * lost("lutgemm-w2g16")


def test_better_than_the_uniform_grid_with_as_many_levels():
    weight = site()[0]

    def lost(token):
        return float((compress(token, weight, None, "float16").to_dense() - weight).norm())

    assert lost("lutgemm-w3-offset") < lost("rtn-w3")


def test_planes_are_counted():
    for bits in (0, 6):
        with pytest.raises(PlanError, match="1 to 5"):
            LutGemmSpec(bits)
    with pytest.raises(PlanError, match="positive"):
        LutGemmSpec(2, 0)
    assert compress("lutgemm-w5g8", torch.ones(2, 8), None, "float16").layout.bits == 5
