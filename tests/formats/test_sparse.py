import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.formats.bitmask import Bitmask
from autocomp.formats.nm import NM
from autocomp.formats.uniform import Grid


def test_bitmask_bytes():
    assert Bitmask((3, 10), 7, "bfloat16").nbytes == 3 * 2 + 7 * 2
    # ceil(7 · 3 / 8) bytes of codes, one scale and one zero byte a row
    assert Bitmask((3, 10), 7, "float16", Grid(3)).nbytes == 3 * 2 + 3 + 3 * (2 + 1)


def test_nm_bytes():
    # 2:4 positions take 2 bits: 4 kept a row are one byte
    assert NM((3, 8), 2, 4, "float16").nbytes == 3 * 1 + 12 * 2
    assert NM((3, 8), 2, 4, "float16", Grid(4, symmetric=True)).nbytes == 3 + 6 + 3 * 2


@pytest.mark.parametrize(
    ("layout", "bits"),
    [
        (NM((64, 256), 2, 4, "float16"), 8 + 1),  # 2 positions of 2 bits and 2 values of 4 weights
        (NM((64, 256), 1, 4, "float16"), 4 + 0.5),
        (NM((64, 256), 4, 8, "float16"), 8 + 1.5),  # positions of 3 bits
        (NM((64, 256), 2, 4, "float16", Grid(8)), 4 + 1),
        (NM((64, 256), 2, 4, "float16", Grid(4)), 2 + 1),
        (Bitmask((64, 256), 64 * 128, "float16"), 8 + 1),
        (Bitmask((64, 256), 64 * 128, "float16", Grid(4)), 2 + 1),
    ],
)
def test_bits_a_weight_beside_those_of_the_grid(layout, bits):
    """2:4 takes 36/64 of fp16, 20/32 of 8-bit codes and 12/16 of 4-bit codes; so does half."""
    sides = 0 if layout.grid is None else 64 * (2 + 1)  # a row's scale, and its zero in a byte
    assert 8 * (layout.nbytes - sides) == bits * 64 * 256


def test_nm_positions_of_a_known_mask():
    mask = torch.tensor([[False, True, False, True, True, True, False, False]])
    weight = NM((1, 8), 2, 4, "float16").pack(mask, torch.arange(8.0)[None])
    assert weight.tensors["index"].tolist() == [[0b01_00_11_01]]
    assert weight.tensors["values"].tolist() == [1.0, 3.0, 4.0, 5.0]
    assert weight.to_dense().tolist() == [[0.0, 1.0, 0.0, 3.0, 4.0, 5.0, 0.0, 0.0]]


def test_wrong_count():
    mask = torch.tensor([[True, False, True, True]])
    with pytest.raises(PlanError, match=r"keeps 3 weights, the layout 2"):
        Bitmask((1, 4), 2, "float16").pack(mask, torch.ones(1, 4))
    with pytest.raises(PlanError, match="exactly 2 of every 4"):
        NM((1, 4), 2, 4, "float16").pack(mask, torch.ones(1, 4))


def test_impossible_layouts():
    with pytest.raises(PlanError, match="between 0 and 4"):
        Bitmask((1, 4), 5, "float16")
    with pytest.raises(PlanError, match="does not divide the 6 inputs"):
        NM((1, 6), 2, 4, "float16")
    with pytest.raises(PlanError, match="got 5:4"):
        NM((1, 8), 5, 4, "float16")
    with pytest.raises(PlanError, match="group size"):
        NM((1, 8), 2, 4, "float16", Grid(4, 3))


def test_codes_need_a_scale():
    mask = torch.ones((1, 4), dtype=torch.bool)
    with pytest.raises(PlanError, match="scale"):
        Bitmask((1, 4), 4, "float16", Grid(4)).pack(mask, torch.zeros((1, 4), dtype=torch.int64))


@pytest.mark.parametrize("grid", [None, Grid(4, 4)])
def test_removed_weights_are_exact_zeros_and_stay_removed(grid):
    mask = torch.tensor([[True, False, True, False]])
    for layout in (Bitmask((1, 4), 2, "float16", grid), NM((1, 4), 2, 4, "float16", grid)):
        packed = layout.pack(mask, torch.full((1, 4), 3), torch.ones(1, 1), torch.ones(1, 1))
        assert not packed.to_dense()[~mask].any()
        assert not layout.fake_quant(torch.full((1, 4), 2.0), packed.tensors)[~mask].any()


def test_a_mask_that_keeps_nothing():
    mask = torch.zeros((2, 5), dtype=torch.bool)
    packed = Bitmask((2, 5), 0, "float16").pack(mask, torch.ones(2, 5))
    packed.check()
    assert not packed.to_dense().any()
