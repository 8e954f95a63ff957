from itertools import combinations

import pytest
import torch

from autocomp.methods._kmeans import kmeans


def error(values, weights, centroids):
    """Return the weighted squared error of each row."""
    distance = (values[:, :, None] - centroids[:, None]).square().amin(dim=2)
    return (weights * distance).sum(dim=1)


def least_error(values, weights, clusters):
    """Return the least error of one row, trying every way to cut it."""
    values, order = values.sort()
    weights, least = weights[order], float("inf")
    for cuts in combinations(range(1, len(values)), clusters - 1):
        total = 0.0
        for part in map(slice, (0, *cuts), (*cuts, len(values))):
            mean = (weights[part] * values[part]).sum() / weights[part].sum()
            total += float((weights[part] * (values[part] - mean).square()).sum())
        least = min(least, total)
    return least


def test_published_examples():
    values = torch.tensor([[0.0, 1.0, 10.0]] * 2)
    found = kmeans(values, torch.tensor([[1.0, 1.0, 1.0], [100.0, 1.0, 1.0]]), 2)
    assert found == pytest.approx(torch.tensor([[0.5, 10.0], [1 / 101, 10.0]]).double())
    values = torch.tensor([[0.0, 4.0, 6.0, 10.0]] * 2)
    found = kmeans(values, torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 50.0, 50.0, 1.0]]), 2)
    assert found == pytest.approx(torch.tensor([[2.0, 8.0], [200 / 51, 310 / 51]]).double())


@pytest.mark.parametrize(("count", "clusters"), [(7, 3), (11, 4), (9, 8), (12, 2), (6, 1)])
def test_no_other_cut_is_better(count, clusters):
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(5, count, generator=generator, dtype=torch.float64)
    weights = torch.rand(5, count, generator=generator, dtype=torch.float64) ** 3
    found = error(values, weights, kmeans(values, weights, clusters))
    for row in range(5):
        least = least_error(values[row], weights[row], clusters)
        assert float(found[row]) == pytest.approx(least, rel=1e-6, abs=1e-12)


def test_beats_lloyd_from_many_starts():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 200, generator=generator, dtype=torch.float64)
    weights = torch.rand(1, 200, generator=generator, dtype=torch.float64) ** 4
    exact = float(error(values, weights, kmeans(values, weights, 8)))
    for _ in range(20):
        centres = values[0][torch.randperm(200, generator=generator)[:8]]
        for _ in range(30):
            owner = (values[0][:, None] - centres).abs().argmin(dim=1)
            mass = torch.zeros(8).double().index_add_(0, owner, weights[0]).clamp_min(1e-12)
            centres = torch.zeros(8).double().index_add_(0, owner, weights[0] * values[0]) / mass
        assert exact <= float(error(values, weights, centres[None])) * (1 + 1e-9)


def test_few_numbers_equal_numbers_and_no_weight():
    few = kmeans(torch.tensor([[3.0, 1.0]]), torch.ones(1, 2), 4)
    assert few.tolist() == [[1.0, 3.0, 3.0, 3.0]]
    equal = torch.tensor([[2.0, 5.0, 2.0, 5.0, 2.0]])
    assert float(error(equal, torch.ones(1, 5), kmeans(equal, torch.ones(1, 5), 3))) < 1e-20
    values = torch.randn(2, 30, generator=torch.Generator().manual_seed(1))
    weightless = kmeans(values, torch.zeros(2, 30), 4)
    assert torch.equal(weightless, kmeans(values, torch.ones(2, 30), 4))


def test_rows_do_not_depend_on_one_another():
    generator = torch.Generator().manual_seed(2)
    values, weights = torch.randn(70, 40, generator=generator), torch.rand(70, 40)
    whole = kmeans(values, weights, 4)
    assert torch.equal(whole[3:5], kmeans(values[3:5], weights[3:5], 4))
