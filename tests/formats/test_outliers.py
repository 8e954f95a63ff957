import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.formats.outliers import Outliers
from autocomp.formats.sum import Sum
from autocomp.formats.uniform import Uniform


def test_a_known_matrix() -> None:
    dense = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [-1.5, 0.0, 2.0]])
    packed = Outliers((3, 3), 3).pack(dense != 0, dense)
    assert packed.tensors["values"].tolist() == [5.0, -1.5, 2.0]
    assert packed.tensors["columns"].tolist() == [1, 0, 2]
    assert packed.tensors["rows"].tolist() == [0, 1, 1, 3]
    assert torch.equal(packed.to_dense(), dense)


def test_an_outlier_takes_32_bits_and_a_row_32_more() -> None:
    assert Outliers((3, 10), 7).nbytes == 7 * 4 + (3 + 1) * 4
    assert Outliers((3, 1 << 15), 7).nbytes == 7 * 4 + (3 + 1) * 4
    assert Outliers((3, (1 << 15) + 1), 7).nbytes == 7 * 6 + (3 + 1) * 4


def test_the_last_columns_of_wide_rows() -> None:
    for width in (1 << 15, (1 << 15) + 1):
        mask = torch.zeros((2, width), dtype=torch.bool)
        mask[:, -1] = True
        packed = Outliers((2, width), 2).pack(mask, torch.full(mask.shape, 3.0))
        packed.check()
        assert torch.equal(packed.to_dense(), 3.0 * mask)


def test_beside_a_rounded_weight_the_marked_weights_are_those_of_float16() -> None:
    weight = torch.randn((4, 16), generator=torch.Generator().manual_seed(0))
    weight[2, 5] = 40.0
    mask = weight.abs() >= weight.abs().flatten().kthvalue(weight.numel() - 2).values
    base = Uniform(weight.shape, 3).pack(
        torch.zeros(weight.shape, dtype=torch.int64), torch.ones(4, 1), torch.zeros(4, 1)
    )
    outliers = Outliers((4, 16), 3).pack(mask, weight - base.to_dense())
    both = Sum((4, 16), base.layout, outliers.layout).pack(base, outliers)
    assert torch.equal(both.to_dense()[mask], weight[mask].half().float())
    assert both.layout.multiply_adds == 4 * 16 + 3


def test_the_mask_must_have_the_count() -> None:
    with pytest.raises(PlanError, match="marks 2 outliers, the layout has 1"):
        Outliers((1, 2), 1).pack(torch.ones((1, 2), dtype=torch.bool), torch.ones(1, 2))
    with pytest.raises(PlanError, match="between 0 and 2 outliers, got 3"):
        Outliers((1, 2), 3)


def test_none_at_all() -> None:
    packed = Outliers((2, 5), 0).pack(torch.zeros((2, 5), dtype=torch.bool), torch.ones(2, 5))
    packed.check()
    assert not packed.to_dense().any()
