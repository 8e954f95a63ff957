import pytest
import torch

from autocomp.core.errors import NumericalError, PlanError
from autocomp.formats.bilevel import Bilevel, Statistic


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_weight_costs_what_the_paper_says() -> None:
    """``b + (3 + 3)/16 + 2 (16 + 16)/(16 · 16)`` bits where nothing is padded."""
    for bits, expected in ((3, 3.625), (4, 4.625)):
        assert 8 * Bilevel((32, 128), bits, 16).nbytes / (32 * 128) == expected


def test_a_known_weight() -> None:
    sides = [
        Statistic(
            torch.tensor([[code], [1]], dtype=torch.uint8),
            *(torch.tensor([[value]], dtype=torch.float16) for value in (low, step)),
        )
        for code, low, step in ((3, 0.5, 0.25), (2, 1.0, 0.125))
    ]
    packed = Bilevel((2, 2), 2, 2).pack(torch.tensor([[0, 3], [1, 2]]), *sides)
    # rows of scale 1.25 and 0.75, zero point 1.25 and 1.125
    expected = [[-1.25 * 1.25, 1.75 * 1.25], [-0.125 * 0.75, 0.875 * 0.75]]
    assert packed.to_dense().tolist() == expected


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_statistics_lie_within_half_a_step(bits: int) -> None:
    values = normal(39, 5).abs() + 0.1
    found = Statistic.fit(values, bits, 16)
    assert found.codes.shape == values.shape
    assert found.low.shape == found.step.shape == (3, 5)
    assert int(found.codes.max()) == (1 << bits) - 1
    step = found.step.float().repeat_interleave(16, dim=0)[:39]
    # the ends, and float16 for the step that many codes are multiplied by
    slack = 2**-10 * values.max()
    assert bool(((found.values(16) - values).abs() <= step / 2 + slack).all())


def test_equal_statistics_are_stored_as_one_number() -> None:
    found = Statistic.fit(torch.full((20, 2), 0.75), 3, 16)
    assert torch.equal(found.values(16), torch.full((20, 2), 0.75))


def test_statistics_too_large_for_float16() -> None:
    with pytest.raises(NumericalError, match="float16"):
        Statistic.fit(torch.full((4, 1), 1e6), 3, 16)


def test_impossible_layouts() -> None:
    with pytest.raises(PlanError, match="the group size divides the inputs"):
        Bilevel((4, 10), 3, 4)
    with pytest.raises(PlanError, match="got 7 and 3"):
        Bilevel((4, 8), 7, 4)


def test_a_tuned_leaf_keeps_its_statistics() -> None:
    """The grid is shared by a band of rows, so that codes alone are put in place."""
    weight = normal(16, 32)
    sides = [Statistic.fit(torch.rand(16, 2) + low, 3, 16) for low in (0.2, 3.0)]
    packed = Bilevel((16, 32), 3, 16).pack(torch.zeros(16, 32, dtype=torch.int64), *sides)
    leaf = packed.grid_leaf(weight)
    assert leaf is not None
    assert leaf.fixed
    again = leaf.regrid(torch.full_like(leaf.codes, 7), leaf.scale, leaf.zero)
    changed = [
        name for name in packed.tensors if not again.tensors[name].equal(packed.tensors[name])
    ]
    assert changed == ["codes"]
