import pytest
import torch

from autocomp.core.spec import LayerSpec
from autocomp.methods.compose import compress
from autocomp.methods.quantization.rtn import Rtn, RtnSpec


def decode(token, weight):
    return compress(weight, LayerSpec.parse(token), None, "float16").to_dense()


def normal(seed, shape=(12, 48)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_evenly_spaced_row_is_exact(bits):
    row = 0.25 * (torch.arange(2**bits) - 2**bits // 3)
    weight = torch.stack([row, row.flip(0)])
    assert torch.equal(decode(f"rtn-w{bits}", weight), weight)


@pytest.mark.parametrize("options", ["w2", "w3g16", "w4g8", "w8", "w4g8-sym", "w3-sym"])
def test_error_is_at_most_half_a_step(options):
    """For every element, ends and one-signed groups included."""
    for seed in range(20):
        weight = normal(seed) + (seed % 3 - 1)
        spec = RtnSpec.parse(f"rtn-{options}")
        error = (decode(f"rtn-{options}", weight) - weight).abs()
        step = Rtn().grid(weight, spec).scale.float().repeat_interleave(spec.group_size or 48, 1)
        assert float((error / step).max()) <= 0.5 * (1 + 1e-5)


def test_one_group_is_the_row():
    weight = normal(0)
    assert torch.equal(decode("rtn-w4g48", weight), decode("rtn-w4", weight))


def test_idempotent():
    """A weight on the grid stays where it is."""
    for seed in range(20):
        once = decode("rtn-w4g16", normal(seed))
        groups = once.view(12, 3, 16)
        twice = decode("rtn-w4g16", once).view(12, 3, 16)
        grid = Rtn().grid(normal(seed), RtnSpec(4, 16))
        # the second grid is the first one wherever both end codes occur
        span = (groups.amax(-1) - groups.amin(-1)) / grid.scale.float()
        full = span.round() == 15
        assert float(full.float().mean()) > 0.9
        assert torch.equal(twice[full], groups[full])
        assert torch.equal(grid.codes(once), grid.codes(grid_decode(grid, grid.codes(once))))


def grid_decode(grid, codes):
    return (
        (codes.view(12, 3, 16).float() - grid.zero[..., None]) * grid.scale[..., None].float()
    ).view(12, 48)


def test_clipping_helps_where_it_should():
    weight = normal(1)
    weight[:, 0] = 12
    plain, clipped = (decode(f"rtn-w3{flag}", weight) - weight for flag in ("", "-mse"))
    assert float(clipped.abs().pow(2.4).sum()) < float(plain.abs().pow(2.4).sum())
