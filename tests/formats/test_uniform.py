import pytest
import torch

from autocomp.core.errors import NumericalError, PlanError
from autocomp.formats.uniform import Grid, Uniform


def test_bytes_of_a_known_layout():
    layout = Uniform((576, 1536), 3, 64)
    infos = layout.tensors()
    assert list(infos) == ["codes", "scale", "zero"]
    assert infos["codes"].shape == (576, 576)
    assert infos["scale"].shape == (576, 24)
    assert infos["zero"].shape == (576, 9)
    assert layout.nbytes == 576 * (576 + 2 * 24 + 9)


def test_symmetric_stores_no_zero():
    layout = Uniform((4, 8), 4, None, symmetric=True)
    assert list(layout.tensors()) == ["codes", "scale"]
    codes = torch.tensor([[0, 7, 8, 9, 15, 8, 8, 8]]).repeat(4, 1)
    dense = layout.pack(codes, torch.full((4, 1), 0.5)).to_dense()
    assert dense[0].tolist() == [-4.0, -0.5, 0.0, 0.5, 3.5, 0.0, 0.0, 0.0]


def test_group_size_must_divide():
    with pytest.raises(PlanError, match=r"64 does not divide the 96 .*\(5, 96\).*48"):
        Uniform((5, 96), 4, 64)


def test_bits_that_are_not_packed():
    with pytest.raises(PlanError, match="7"):
        Grid(7)


def test_scale_must_be_finite():
    layout = Uniform((1, 4), 4)
    codes = torch.zeros((1, 4), dtype=torch.int64)
    for scale in (1e6, float("nan")):
        with pytest.raises(NumericalError, match="finite"):
            layout.pack(codes, torch.tensor([[scale]]), torch.zeros(1, 1))


def test_zero_points_are_needed():
    with pytest.raises(PlanError, match="zero"):
        Uniform((1, 4), 4).pack(torch.zeros((1, 4), dtype=torch.int64), torch.ones(1, 1))


def test_fake_quant_rounds_and_clips():
    layout = Uniform((1, 4), 2, None)
    packed = layout.pack(
        torch.zeros((1, 4), dtype=torch.int64), torch.ones(1, 1), torch.ones(1, 1)
    )
    weight = torch.tensor([[-9.0, -0.6, 0.4, 9.0]])
    assert layout.fake_quant(weight, packed.tensors).tolist() == [[-1.0, -1.0, 0.0, 2.0]]


def test_a_zero_scale_decodes_and_projects_to_zero():
    layout = Uniform((1, 4), 4)
    codes = torch.arange(4)[None]
    packed = layout.pack(codes, torch.zeros(1, 1), torch.zeros(1, 1))
    assert not packed.to_dense().any()
    assert not layout.fake_quant(torch.ones(1, 4), packed.tensors).any()


def test_decoding_in_chunks_equals_the_formula():
    grid = Grid(4, 64)
    codes = torch.randint(0, 16, (3000, 192), dtype=torch.uint8)
    scale = torch.rand(3000, 3).half()
    zero = torch.randint(0, 16, (3000, 3))
    expected = (codes.view(3000, 3, 64).float() - zero[..., None]) * scale.float()[..., None]
    assert torch.equal(grid.decode(codes, grid.pack(scale, zero)), expected.view(3000, 192))
