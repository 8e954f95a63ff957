import pytest
import torch

from autocomp.core.errors import NumericalError, PlanError
from autocomp.formats._levels import nearest_level
from autocomp.formats.codebook import Codebook


def test_nearest_of_levels_in_any_order_and_the_lower_of_equally_near_ones():
    levels = torch.tensor([[3.0, -1.0, 0.0, 0.0]])
    values = torch.tensor([[-9.0, -0.5, 0.2, 1.5, 1.6, 3.0]])
    chosen = levels[0][nearest_level(values, levels)]
    assert chosen.tolist() == [[-1.0, -1.0, 0.0, 0.0, 3.0, 3.0]]


def test_bits_a_weight():
    assert Codebook((64, 512), 3).nbytes * 8 == (3 + 16 * 8 / 512) * 64 * 512


def test_refusals():
    for bits in (0, 9):
        with pytest.raises(PlanError, match="1 to 8 bits"):
            Codebook((4, 16), bits)
    with pytest.raises(NumericalError, match="finite"):
        Codebook((1, 2), 1).pack(torch.tensor([[0, 1]]), torch.tensor([[0.0, 1e6]]))
