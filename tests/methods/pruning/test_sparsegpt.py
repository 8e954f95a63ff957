import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods.compose import layout
from autocomp.methods.pruning.magnitude import Magnitude, MagnitudeSpec
from autocomp.methods.pruning.sparsegpt import SparseGpt, SparseGptSpec
from autocomp.testing.methods import compress, output_error, site


def test_exact_count_of_every_strip():
    """Sparsity is exact a strip of 128 columns, here 128 and 36 wide."""
    weight, stats = site(shape=(9, 164))
    keep = SparseGpt().mask(weight, SparseGptSpec(0.45), stats)
    assert int((~keep[:, :128]).sum()) == int(9 * 128 * 0.45)
    assert int((~keep[:, 128:]).sum()) == int(9 * 36 * 0.45)
    assert SparseGpt().layout(SparseGptSpec(0.45), (9, 164), "float16").kept == int(keep.sum())


@pytest.mark.parametrize(("keep", "m"), [(2, 4), (4, 8), (1, 4)])
def test_exact_count_of_every_pattern(keep, m):
    weight, stats = site()
    mask = SparseGpt().mask(weight, SparseGptSpec(keep=keep, m=m), stats)
    assert bool((mask.view(24, -1, m).sum(dim=2) == keep).all())


def test_pattern_with_identity_moments_is_magnitude():
    weight = site()[0]
    found = SparseGpt().solve(weight, SparseGptSpec(keep=2, m=4), Stats(hessian=torch.eye(32)))
    keep = Magnitude().mask(weight, MagnitudeSpec(keep=2, m=4), None)
    assert torch.equal(found.keep, keep)
    assert torch.equal(found.weight, weight * keep)


def test_diagonal_moments_score_as_wanda_squared():
    """The mask of ``w² (H_jj + damping)`` over the matrix."""
    weight, stats = site()
    diagonal = stats.hessian.diagonal()
    keep = SparseGpt().mask(weight, SparseGptSpec(0.5), Stats(hessian=torch.diag(diagonal)))
    metric = weight * (diagonal + 0.01 * diagonal.mean()).sqrt()
    assert torch.equal(keep, Magnitude().mask(metric, MagnitudeSpec(0.5), None))


def test_patterns_cost_more_than_free_masks():
    """At equal density, on average."""
    free = pattern = magnitude = 0.0
    for seed in range(5):
        weight, stats = site(seed)
        errors = [
            output_error(weight, compress(token, weight, stats, "float16").to_dense(), stats)
            for token in ("sparsegpt-s50", "sparsegpt-2:4", "magnitude-s50")
        ]
        free, pattern, magnitude = free + errors[0], pattern + errors[1], magnitude + errors[2]
    assert free < pattern < magnitude


def test_pattern_longer_than_a_strip_divides_is_refused():
    """M must not straddle the solver's strips."""
    with pytest.raises(PlanError, match="divides 128"):
        layout(LayerSpec.parse("sparsegpt-3:6"), (8, 48), "float16")
