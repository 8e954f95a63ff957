import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods.low_rank.asvd import Asvd, AsvdSpec, allocate, truncation_sensitivity
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


# --- allocation


@pytest.mark.parametrize("shape", SHAPES)
def test_sensitivity_is_the_share_of_the_output_that_is_lost(shape):
    weight, stats = anisotropic(shape=shape)
    specs = [AsvdSpec(rank=rank) for rank in (1, 4, 16, 24)]
    found = truncation_sensitivity(weight, stats, specs)
    whole = output_error(weight, torch.zeros_like(weight), stats)
    for spec in specs:
        product = torch.matmul(*Asvd().factors(weight, spec, stats))
        expected = output_error(weight, product, stats) / whole
        assert found[spec] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_sensitivity_of_nothing_and_of_two_powers():
    stats = site()[1]
    spec = AsvdSpec(rank=4)
    assert truncation_sensitivity(torch.zeros(24, 32), stats, [spec]) == {spec: 0.0}
    with pytest.raises(PlanError, match=r"of one α, got the percents \[0, 50\]"):
        truncation_sensitivity(site()[0], stats, [spec, AsvdSpec(rank=4, alpha_percent=0)])


RATIOS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIZES = {
    name: {**{ratio: round(ratio * size) for ratio in RATIOS}, 1.0: size}
    for name, size in (("narrow", 1000), ("wide", 4000), ("tall", 2000))
}
LOSSES = {
    "narrow": {ratio: 9 * (1 - ratio) for ratio in RATIOS},
    "wide": {ratio: 1 - ratio for ratio in RATIOS},
    "tall": {ratio: 3 * (1 - ratio) for ratio in RATIOS},
}


def reference(target):
    """Return the allocation by trying every cut in turn, written as the paper describes it."""
    flat = [(loss, name, ratio) for name in LOSSES for ratio, loss in LOSSES[name].items()]
    flat.sort(reverse=True)
    for cut in range(len(flat), -1, -1):
        chosen = dict.fromkeys(LOSSES, 1.0)
        for _, name, ratio in flat[cut:]:
            chosen[name] = min(chosen[name], ratio)
        if sum(SIZES[name][ratio] for name, ratio in chosen.items()) <= target:
            return chosen
    raise AssertionError(target)


@pytest.mark.parametrize("share", [1.0, 0.95, 0.8, 0.7, 0.55, 0.4])
def test_allocation_meets_the_target_within_one_step(share):
    target = round(share * 7000)
    found = allocate(LOSSES, SIZES, target)
    assert found == reference(target)
    total = sum(SIZES[name][ratio] for name, ratio in found.items())
    assert target - 0.1 * 4000 <= total <= target
    assert found["wide"] <= found["tall"] <= found["narrow"], "the more sensitive was cut deeper"


def test_allocation_refuses_what_cannot_be_met():
    with pytest.raises(PlanError, match="the smallest options take 2800, more than 2799"):
        allocate(LOSSES, SIZES, 2799)


@pytest.mark.parametrize("token", ["asvd-r4", "asvd-r4-a0"])
def test_mean_magnitudes_are_asked_for_whatever_the_power(token):
    with pytest.raises(PlanError, match="asvd needs the calibration statistic 'absmean'"):
        compress(token, site()[0], None, "float16")
