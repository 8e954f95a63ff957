import pytest
import torch

from autocomp.core.stats import Stats
from autocomp.methods.pruning.magnitude import Magnitude, MagnitudeSpec
from autocomp.methods.pruning.wanda import Wanda, WandaSpec
from autocomp.testing.methods import compress, site


@pytest.mark.parametrize("sparsity", [0.1, 0.333, 0.5, 0.9])
def test_exact_count_of_the_matrix(sparsity):
    """``floor(numel · s)`` go, ties or not."""
    for weight in (site()[0], site()[0].round()):
        keep = Magnitude().mask(weight, MagnitudeSpec(sparsity), None)
        assert int((~keep).sum()) == int(weight.numel() * sparsity)
        assert float(weight[~keep].abs().max()) <= float(weight[keep].abs().min())


def test_idempotent_and_invariant_to_scale():
    weight, spec = site()[0], MagnitudeSpec(0.5)
    keep = Magnitude().mask(weight, spec, None)
    assert torch.equal(Magnitude().mask(weight * keep, spec, None), keep)
    assert torch.equal(Magnitude().mask(8 * weight, spec, None), keep)


def test_a_row_alone_is_wanda_with_unit_norms():
    """Row scope is Wanda with unit norms."""
    unit = Stats(norms=torch.ones(32))
    for row in site()[0].split(1):
        keep = Magnitude().mask(row, MagnitudeSpec(0.5), None)
        assert torch.equal(keep, Wanda().mask(row, WandaSpec(0.5), unit))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "5:8"])
def test_patterned_weights_are_unchanged(pattern):
    """Packing is exact and a weight that has the pattern keeps it."""
    once = compress(f"magnitude-{pattern}", site()[0], None, "float16").to_dense()
    assert torch.equal(compress(f"magnitude-{pattern}", once, None, "float16").to_dense(), once)
