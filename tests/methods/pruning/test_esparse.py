"""E-Sparse: entropy of a histogram, and a score that becomes Wanda's at both of its ends."""

import math
from dataclasses import replace

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.methods.pruning.esparse import ESparse, ESparseSpec, entropy
from autocomp.methods.pruning.wanda import Wanda, WandaSpec
from autocomp.testing.methods import site


def mask(token, weight, stats):
    return ESparse().mask(weight, ESparseSpec.parse(token), stats)


def test_entropy_of_known_columns():
    """A constant tells nothing, two equal halves log 2, a uniform column log of all its bins."""
    rows = torch.arange(1000.0)
    sample = torch.stack([torch.full_like(rows, 7.0), rows % 2, rows], dim=1)
    expected = torch.tensor([0.0, math.log(2), math.log(100)])
    assert torch.allclose(entropy(sample), expected, atol=1e-6)


def test_entropy_has_no_unit():
    sample = site()[1].sample
    assert torch.allclose(entropy(sample), entropy(8 * sample), atol=1e-6)
    assert torch.allclose(entropy(sample), entropy(-sample), atol=0.02)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "s50"])
def test_it_is_wanda_where_norms_decide_or_entropies_are_nil(pattern):
    weight, stats = site()
    wanda = Wanda().mask(weight, WandaSpec.parse(f"wanda-{pattern}"), stats)
    assert torch.equal(mask(f"esparse-{pattern}-a1000000000", weight, stats), wanda)
    silent = replace(stats, sample=torch.ones(16, 32))
    assert torch.equal(mask(f"esparse-{pattern}", weight, silent), wanda)


def test_with_equal_norms_what_tells_more_stays():
    """Of each pattern the inputs 0 and 1 tell most; all weights are alike."""
    weight, stats = torch.ones(4, 8), site(shape=(4, 8))[1]
    values = torch.randint(0, 2, (256, 8), generator=torch.Generator().manual_seed(0)).float()
    values[:, [0, 1, 4, 5]] = torch.rand(256, 4, generator=torch.Generator().manual_seed(1))
    found = mask("esparse-2:4-a0", weight, replace(stats, sample=values))
    assert found[0].tolist() == [True, True, False, False] * 2


@pytest.mark.parametrize(("keep", "m"), [(2, 4), (1, 4), (4, 8), (3, 8)])
def test_exact_count_of_every_pattern(keep, m):
    weight, stats = site()
    patterns = mask(f"esparse-{keep}:{m}", weight, stats).view(24, -1, m)
    assert bool((patterns.sum(dim=2) == keep).all())


def test_alpha_is_part_of_the_token():
    assert ESparseSpec.parse("esparse-2:4") == ESparseSpec(keep=2, m=4, alpha=1.0)
    assert ESparseSpec(keep=2, m=4, alpha=0.5).token() == "esparse-2:4-a0.5"
    for wrong in ("esparse-2:4-a", "esparse-2:4-ax", "esparse-a1", "esparse-2:4-b1"):
        with pytest.raises(PlanError, match="cannot read"):
            LayerSpec.parse(wrong)
