"""Draws by inversion against known distributions."""

import torch

from autocomp.models.sampling import invert_cumulative


def test_levels_fall_into_their_interval():
    share = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(4, -1)
    levels = torch.tensor([[0.1], [0.3], [0.74], [0.99]])
    assert invert_cumulative(share, levels)[:, 0].tolist() == [0, 2, 2, 3]


def test_weights_need_not_add_up_to_one():
    share = torch.tensor([[2.0, 6.0]]).expand(2, -1)
    assert invert_cumulative(share, torch.tensor([[0.2], [0.3]]))[:, 0].tolist() == [0, 1]


def test_frequencies_are_the_probabilities():
    share = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).expand(20_000, -1)
    levels = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    found = torch.bincount(invert_cumulative(share, levels)[:, 0]) / 20_000
    # 4 standard errors of a frequency: 4 · sqrt(0.25 / 20000) = 0.014 at most.
    assert (found - share[0]).abs().max() < 0.014
