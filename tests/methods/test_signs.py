import pytest
import torch

from autocomp.formats._levels import nearest_level
from autocomp.formats.bcq import signs
from autocomp.methods._signs import alternate, greedy, refitted


def error(groups, share, scale, offset, bits):
    """Return the weighted squared error of each group with the nearest codes."""
    levels = scale @ signs(bits).T + offset[:, None]
    nearest = levels.gather(1, nearest_level(groups, levels))
    return (share * (groups - nearest).square()).sum(dim=1)


def drawn(bits):
    generator = torch.Generator().manual_seed(bits)
    groups = torch.randn(8, 128, generator=generator)
    share = torch.rand(8, 128, generator=generator)
    return groups, share / share.sum(dim=1, keepdim=True)


def test_neither_step_raises_the_error():
    for bits in (1, 3, 5):
        for with_offset in (False, True):
            groups, share = drawn(bits)
            scale, offset = greedy(groups, share, bits), torch.zeros(8)
            last = error(groups, share, scale, offset, bits)
            first = last.clone()
            for _ in range(10):
                codes = nearest_level(groups, scale @ signs(bits).T + offset[:, None])
                scale, offset = refitted(groups, share, codes, signs(bits), scale, with_offset)
                now = error(groups, share, scale, offset, bits)
                assert bool((now <= last * (1 + 1e-5) + 1e-9).all())
                last = now
            assert bits == 1 or float(last.sum()) < 0.95 * float(first.sum())


def test_one_plane_takes_the_mean_size():
    groups, _ = drawn(1)
    scale, offset = alternate(groups, torch.ones_like(groups), signs(1), False)
    assert torch.allclose(scale[:, 0], groups.abs().mean(dim=1))
    assert not offset.any()


def test_zeros_count_as_positive():
    scale = greedy(torch.tensor([[0.0, 0.0, 3.0, -3.0]]), torch.full((1, 4), 0.25), 2)
    # what is left of a 0 is −1.5, not 0 as it would be if its sign were 0
    assert scale.tolist() == [[1.5, 1.5]]


def test_more_numbers_than_levels_are_fitted_exactly_where_a_sum_fits():
    codes = torch.arange(8).repeat(4)[None]
    groups = torch.tensor([[4.0, 2.0, 1.0]]) @ signs(3).T + 0.5
    scale, offset = alternate(groups.gather(1, codes), torch.ones(1, 32), signs(3), True)
    assert float(error(groups, torch.ones(1, 8), scale, offset, 3)) < 1e-9


def test_planes_that_agree_part_again():
    """A number far out makes all planes its sign; the others are then told apart by one more."""
    groups = torch.tensor([[-0.1, 0.3, -0.2, 0.1, 8.0, 0.2, -5.0, -0.3]])
    share = torch.full_like(groups, 1 / 8)
    codes = torch.where(groups < 0, 0, 7)
    scale, _ = refitted(groups, share, codes, signs(3), torch.tensor([[2.0, 1.0, 0.9]]), False)
    assert scale.sum().item() == pytest.approx(float(groups.abs().mean()))
    assert (scale.diff() < -0.05).all()
