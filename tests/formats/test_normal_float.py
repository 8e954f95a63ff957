import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.formats.normal_float import NormalFloat, magnitude_levels, normal_levels

NF4 = (
    "-1 -.6961928 -.5250731 -.3949175 -.2844414 -.1847734 -.0910500 0 "
    ".0795803 .1609302 .2461123 .3379152 .4407098 .5626170 .7229568 1"
)


def test_the_levels_are_those_published():
    published = torch.tensor([float(value) for value in NF4.split()])
    assert torch.allclose(normal_levels(4), published, rtol=0, atol=2e-7)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_ascend_from_minus_one_to_one_through_zero(bits):
    levels = normal_levels(bits)
    assert len(levels) == 2**bits
    assert bool((levels.diff() > 0).all())
    assert 0 in levels
    assert levels[0] == -1
    assert levels[-1] == 1


def test_error_on_a_normal_distribution():
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    error = NormalFloat(weight.shape, double=False).quantize(weight).to_dense() - weight
    assert float(error.square().mean()) == pytest.approx(0.00848, abs=2e-4)
    blocks = weight.view(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 7
    symmetric = (blocks / scale).round().clamp(-8, 7) * scale - blocks
    assert float(symmetric.square().mean()) == pytest.approx(0.01158, abs=3e-4)


def test_the_largest_of_each_block_is_exact_without_double_quantization():
    weight = torch.randn(6, 60, generator=torch.Generator().manual_seed(0))
    dense = NormalFloat(weight.shape, 4, 64, False).quantize(weight).to_dense()
    for block, kept in zip(weight.flatten().split(64), dense.flatten().split(64), strict=True):
        assert kept[block.abs().argmax()] == block[block.abs().argmax()]


def test_magnitudes_have_256_levels_between_which_they_fall():
    levels = magnitude_levels()
    assert len(levels.unique()) == 256
    assert levels[-1] == 1
    assert 0 in levels
    assert float(levels[0]) == pytest.approx(-(1 - 0.9 / 128), abs=1e-6)
    weight = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    layout = NormalFloat(weight.shape)
    found = layout.magnitudes(layout.quantize(weight).tensors)
    absmax = weight.abs().amax(dim=1)
    spread = (absmax - absmax.mean()).abs()
    gap = torch.cat([spread[:256].max().expand(256), spread[256:].max().expand(44)])
    assert bool(((found - absmax).abs() <= gap * float(levels.diff().max()) / 2 * 1.001).all())


def test_bits_a_weight():
    layout = NormalFloat((256, 1024))
    assert 8 * layout.nbytes == (4 + 8 / 64 + 32 / (64 * 256)) * 256 * 1024 + 32
    assert 8 * NormalFloat((256, 1024), double=False).nbytes == 4.5 * 256 * 1024


def test_refusals():
    for bits, block in ((1, 64), (9, 64), (4, 0)):
        with pytest.raises(PlanError, match="2 to 8 bits"):
            NormalFloat((4, 16), bits, block)
