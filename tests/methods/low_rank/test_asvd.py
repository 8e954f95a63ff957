import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods.low_rank.asvd import Asvd, AsvdSpec
from autocomp.methods.low_rank.whitened_svd import WhitenedSvd, WhitenedSvdSpec
from autocomp.testing.methods import compress, output_error, site

SHAPES = [(24, 40), (40, 24), (24, 24)]


def anisotropic(seed=0, shape=(24, 40)):
    """Return a weight and statistics of inputs whose magnitudes span two decades."""
    weight = site(seed, shape)[0]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(400, shape[1], generator=generator) * torch.logspace(-1, 1, shape[1])
    hessian = inputs.T @ inputs / len(inputs)
    return weight, Stats(hessian=hessian, absmean=inputs.abs().mean(dim=0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 8, 24])
def test_alpha_zero_is_the_svd_to_the_bit(shape, rank):
    weight, stats = site(shape=shape)
    asvd = compress(f"asvd-r{rank}-a0", weight, stats, "float16")
    svd = compress(f"svd-r{rank}", weight, stats, "float16")
    assert asvd.layout == svd.layout
    assert all(torch.equal(asvd.tensors[name], svd.tensors[name]) for name in svd.tensors)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_svd_of_the_scaled_weight_with_the_scales_undone(shape):
    """``U_k Σ_k V_kᵀ S⁻¹``, written out."""
    weight, stats = anisotropic(shape=shape)
    scale = stats.absmean.double().sqrt()
    left, values, right = torch.linalg.svd(weight.double() * scale, full_matrices=False)
    expected = left[:, :8] * values[:8] @ right[:8] / scale
    found = torch.matmul(*Asvd().factors(weight, AsvdSpec(rank=8), stats))
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("alpha", [25, 50, 100])
def test_beats_the_svd_where_inputs_differ_in_size(alpha):
    for seed in range(3):
        weight, stats = anisotropic(seed)
        plain, scaled = (
            output_error(weight, compress(token, weight, stats, "float32").to_dense(), stats)
            for token in ("svd-r8", f"asvd-r8-a{alpha}".removesuffix("-a50"))
        )
        assert scaled < 0.9 * plain


def test_root_mean_squares_are_the_optimal_scales_of_uncorrelated_inputs():
    """With a diagonal H, scaling by ``√E[x²]`` is whitening."""
    weight = site()[0]
    norms = torch.logspace(-1, 1, 32)
    stats = Stats(hessian=norms.square().diag(), absmean=norms)
    scaled = torch.matmul(*Asvd().factors(weight, AsvdSpec(rank=8, alpha_percent=100), stats))
    best = torch.matmul(*WhitenedSvd().factors(weight, WhitenedSvdSpec(rank=8), stats))
    assert torch.allclose(scaled, best, atol=1e-4)


def test_inputs_that_are_always_zero_do_no_harm():
    weight, stats = anisotropic()
    stats.absmean[3] = stats.hessian[3] = stats.hessian[:, 3] = 0
    for token in ("asvd-r8", "asvd-r8-a100"):
        dense = compress(token, weight, stats, "float16").to_dense()
        assert float(dense.norm()) < 2 * float(weight.norm())


def test_tokens():
    for token in ("asvd-r16", "asvd-p50", "asvd-p12.5-a100", "asvd-r4-a0"):
        assert LayerSpec.parse(token).factor.token() == token
    assert LayerSpec.parse("asvd-r16-a50").token() == "asvd-r16"
    for token in ("asvd-a50", "asvd-r16-a", "asvd-r16-b5", "asvd-x5"):
        with pytest.raises(PlanError, match="cannot read"):
            LayerSpec.parse(token)
    with pytest.raises(PlanError, match=r"α must lie in 0\.\.100"):
        LayerSpec.parse("asvd-r16-a101")


@pytest.mark.parametrize("token", ["asvd-r4", "asvd-r4-a0"])
def test_mean_magnitudes_are_asked_for_whatever_the_power(token):
    with pytest.raises(PlanError, match="asvd needs the calibration statistic 'absmean'"):
        compress(token, site()[0], None, "float16")
