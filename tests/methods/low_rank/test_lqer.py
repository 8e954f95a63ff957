import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.testing.methods import compress, output_error, site


def parts(token, weight, stats):
    packed = compress(token, weight, stats, "float16")
    return packed.layout.unpack(packed.tensors)


@pytest.mark.parametrize("alpha", [0, 50, 100])
def test_correction_is_the_best_of_the_scaled_error(alpha):
    """``A B S`` is the truncated SVD of ``(W − Ŵ) S``, written out."""
    weight, stats = site()
    token = f"rtn-w3+lqer-r4-a{alpha}".removesuffix("-a100")
    base, correction = parts(token, weight, stats)
    scale = stats.absmean.double() ** (alpha / 100)
    lost = (weight - base.to_dense()).double() * scale
    left, values, right = torch.linalg.svd(lost, full_matrices=False)
    expected = left[:, :4] * values[:4] @ right[:4] / scale
    assert torch.allclose(correction.to_dense().double(), expected, atol=2e-3)


def test_where_inputs_differ_in_size_scales_pay_and_moments_pay_more():
    """Plain, scaled, whitened: each knows more of the inputs, whose sizes span two decades."""
    totals = dict.fromkeys(("lqer-r4-a0", "lqer-r4", "lorc-r4"), 0.0)
    for seed in range(3):
        weight = site(seed)[0]
        generator = torch.Generator().manual_seed(seed)
        mixed = torch.randn(32, 32, generator=generator) + 2 * torch.eye(32)
        inputs = torch.randn(500, 32, generator=generator) @ mixed * torch.logspace(-1, 1, 32)
        stats = Stats(hessian=inputs.T @ inputs / 500, absmean=inputs.abs().mean(dim=0))
        for token in totals:
            dense = compress(f"rtn-w3+{token}", weight, stats, "float32").to_dense()
            totals[token] += output_error(weight, dense, stats)
    plain, scaled, whitened = totals.values()
    assert whitened < 0.98 * scaled
    assert scaled < 0.9 * plain


def test_tokens():
    for token in ("lqer-r16", "lqer-p5", "lqer-r16-a0", "lqer-p2.5-a50-w4", "lqer-r16-w8"):
        assert LayerSpec.parse(f"rtn-w4+{token}").residual.token() == token
    for token in ("lqer-a0", "lqer-r16-w8-a0", "lqer-r16-a"):
        with pytest.raises(PlanError, match="cannot read"):
            LayerSpec.parse(f"rtn-w4+{token}")
    with pytest.raises(PlanError, match=r"α must lie in 0\.\.100"):
        LayerSpec.parse("rtn-w4+lqer-r16-a101")
