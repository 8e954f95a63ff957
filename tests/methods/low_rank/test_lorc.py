import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.registry import METHODS
from autocomp.core.spec import LayerSpec
from autocomp.methods import compose
from autocomp.testing.methods import compress, names, options, output_error, site

SHAPE = (24, 32)


def error(token, seed=0):
    weight, stats = site(seed)
    return output_error(weight, compress(token, weight, stats, "float32").to_dense(), stats)


def test_error_is_the_tail_of_the_whitened_spectrum():
    """Eckart–Young under H: what rank k leaves are the squares of the other singular values."""
    weight, stats = site()
    lost = (weight - compress("rtn-w3", weight, stats, "float32").to_dense()).double()
    root = torch.linalg.cholesky(stats.hessian.double())
    spectrum = torch.linalg.svdvals(lost @ root).square()
    for rank in (1, 4, 16):
        expected = float(spectrum[rank:].sum())
        assert error(f"rtn-w3+lorc-r{rank}") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "base", ["rtn-w3", "gptq-w3g8", "wanda-s50", "rotation-hadamard+rtn-w2g8"]
)
def test_error_falls_with_every_rank(base):
    errors = [error(base), *(error(f"{base}+lorc-r{rank}") for rank in (1, 2, 4, 8, 16))]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_a_correction_is_of_the_weight_that_it_stands_beside():
    weight, stats = site()
    both = compress("rtn-w3+lorc-r4", weight, stats, "float16")
    base, correction = both.layout.unpack(both.tensors)
    alone = compress("rtn-w3", weight, stats, "float16")
    assert torch.equal(base.to_dense(), alone.to_dense())
    lost = weight - base.to_dense()
    factors = compress("wsvd-r4", lost, stats, "float16")
    assert torch.equal(correction.to_dense(), factors.to_dense())


def test_bytes_are_those_of_base_and_factors():
    base = compose.layout(LayerSpec.parse("rtn-w3"), SHAPE, "float16").nbytes

    def added(token):
        return compose.layout(LayerSpec.parse(f"rtn-w3+{token}"), SHAPE, "float16").nbytes - base

    assert added("lorc-r4") == 2 * 4 * (24 + 32)
    # 8-bit codes, and a float16 scale for each of 24 + 4 rows
    assert added("lorc-r4-w8") == 4 * (24 + 32) + 2 * (24 + 4)
    # 20 % of the parameters of the weight: 24 · 32 / 5 = 153 = 2.7 · (24 + 32)
    assert added("lorc-p20") == 2 * 2 * (24 + 32)


def test_eight_bit_factors_cost_little():
    """What 8 bits lose is a small part of the correction, itself a small part of the weight."""
    for seed in range(3):
        rounded, exact = (error(f"rtn-w3+lorc-r8{ending}", seed) for ending in ("-w8", ""))
        assert exact <= rounded < 1.01 * exact


def test_nothing_lost_needs_no_correction():
    weight, stats = torch.zeros(SHAPE), site()[1]
    for token in ("rtn-w4+lorc-r4", "rtn-w4+lorc-r4-w8"):
        assert not compress(token, weight, stats, "float16").to_dense().any()


def test_tokens():
    for token in ("lorc-r16", "lorc-p5", "lorc-r16-w8", "lorc-p2.5-w4"):
        assert LayerSpec.parse(f"rtn-w4+{token}").residual.token() == token
    with pytest.raises(PlanError, match="4, 6, 8"):
        LayerSpec.parse("rtn-w4+lorc-r16-w5")
    for token in ("lorc-w8", "lorc-r16-w", "lorc-r16-wx"):
        with pytest.raises(PlanError, match="cannot read"):
            LayerSpec.parse(f"rtn-w4+{token}")


# --- on everything else


def first(slot):
    """Return the first valid option of every method of a slot."""
    return [options(name, "valid")[0] for name in names("site") if METHODS[name].spec.slot == slot]


BASES = [
    *first("quantizer"),
    *first("mask"),
    *(f"{mask}+{quantizer}" for mask in first("mask") for quantizer in ("rtn-w3g8", "gptq-w3g8")),
]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("residual", ["lorc-r6", "lorc-r6-w8", "lqer-r6"])
def test_corrects_any_quantizer_and_any_mask(base, residual):
    """Sparse, quantized, or both: the base stays to the bit, and its output error falls."""
    weight, stats = site()
    alone = compress(base, weight, stats, "float16")
    both = compress(f"{base}+{residual}", weight, stats, "float16")
    kept, correction = both.layout.unpack(both.tensors)
    assert kept.layout == alone.layout
    assert all(torch.equal(kept.tensors[name], alone.tensors[name]) for name in alone.tensors)
    assert both.nbytes == alone.nbytes + correction.nbytes
    lost = output_error(weight, alone.to_dense(), stats)
    assert output_error(weight, both.to_dense(), stats) < 0.8 * lost
