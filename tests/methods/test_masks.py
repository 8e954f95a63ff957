import pytest
import torch

from autocomp.methods._masks import drop_smallest, pattern_mask, removed
from autocomp.methods.pruning.magnitude import MagnitudeSpec


def test_removed_is_the_floor_despite_rounding():
    assert removed(100, 0.29) == 29  # 100 * 0.29 is 28.999999999999996
    assert removed(7, 0.5) == 3
    assert removed(1, 0.99) == 0


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_exact_count_and_the_smallest_go(count):
    score = torch.randn(20, 8, generator=torch.Generator().manual_seed(count))
    keep = drop_smallest(score, count)
    assert bool((keep.sum(dim=1) == 8 - count).all())
    dropped = score.masked_fill(keep, -torch.inf).amax(dim=1)
    kept = score.masked_fill(~keep, torch.inf).amin(dim=1)
    assert bool((dropped < kept).all())


def test_of_equal_scores_the_leftmost_go():
    score = torch.tensor([[1.0, 0.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    expected = [[False, False, False, True, True], [False, False, False, True, True]]
    assert drop_smallest(score, 3).tolist() == expected


def test_stable_sort_gives_the_same_mask():
    score = torch.randint(0, 4, (30, 50), generator=torch.Generator().manual_seed(0)).float()
    order = score.sort(dim=1, stable=True).indices
    expected = torch.ones_like(score, dtype=torch.bool).scatter_(1, order[:, :23], False)
    assert torch.equal(drop_smallest(score, 23), expected)


@pytest.mark.parametrize(("keep", "m"), [(2, 4), (4, 8), (1, 4), (5, 8), (4, 4)])
def test_every_pattern_has_its_count(keep, m):
    score = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    mask = pattern_mask(score, MagnitudeSpec(keep=keep, m=m))
    assert bool((mask.view(6, -1, m).sum(dim=2) == keep).all())
