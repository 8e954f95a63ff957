from dataclasses import replace

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods._column_solver import DAMPING, ColumnFactor
from autocomp.methods._two_streams import towards_dense
from autocomp.methods._uniform import AffineGrid
from autocomp.methods.compose import compress
from autocomp.testing.methods import site

SPEC = LayerSpec.parse("gptq-w3")


def streams(seed, inputs=8, tokens=200):
    """Return a weight (5, inputs), inputs of the dense model and those of the compressed one."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    dense = torch.randn(tokens, inputs, generator=generator) @ mixing
    other = dense + 0.3 * torch.randn(tokens, inputs, generator=generator) @ mixing.roll(1, 0)
    return torch.randn(5, inputs, generator=generator), dense, other


def statistics(dense, other):
    hessian = other.T @ other / len(other)
    return Stats(hessian=hessian, drift=(dense - other).T @ other / len(other))


def lost(weight, found, dense, other):
    return float((other @ found.T - dense @ weight.T).square().sum())


def test_streams_that_agree_change_nothing():
    weight, stats = site()
    there = replace(stats, drift=torch.zeros_like(stats.hessian), derived={})
    for token in ("gptq-w3g8", "actorder+gptq-w2g8", "owq-w3g8-t4", "rtn-w3g8", "wanda-s50"):
        spec = LayerSpec.parse(token)
        alone, both = (compress(weight, spec, given, "float16") for given in (stats, there))
        assert all(torch.equal(both.tensors[name], t) for name, t in alone.tensors.items())


def test_columns_are_rounded_where_least_squares_puts_them():
    """Solved anew for all columns still to come after each one, on both streams at once."""
    for seed in range(5):
        weight, dense, other = (tensor.double() for tensor in streams(seed))
        stats = statistics(dense, other)
        count, inputs = other.shape
        damping = DAMPING * float(stats.hessian.diagonal().mean())
        ridge = (count * damping) ** 0.5 * torch.eye(inputs).double()
        read, wanted = torch.cat([other, ridge]), torch.cat([dense, ridge]) @ weight.T
        goal = towards_dense(weight, stats, "gptq")
        grid = AffineGrid.fit(goal, SPEC.quantizer)
        found = torch.zeros_like(weight)
        order = ColumnFactor.of(stats.hessian, act_order=True).order.tolist()
        for place, column in enumerate(order):
            rest = order[place:]
            best = torch.linalg.lstsq(read[:, rest], wanted - read @ found.T).solution
            moved = torch.zeros_like(weight)
            moved[:, column] = best[0]
            found[:, column] = grid.nearest(moved)[:, column]
        single = Stats(hessian=stats.hessian.float(), drift=stats.drift.float())
        made = compress(weight.float(), SPEC, single, "float16").to_dense()
        assert torch.allclose(made.double(), found, rtol=0, atol=1e-5)


def test_outputs_come_nearer_to_those_of_the_dense_model():
    """What exceeds the least error that any weight has on the other inputs: over seeds, half."""
    two = one = 0.0
    for seed in range(5):
        weight, dense, other = streams(seed)
        stats = statistics(dense, other)
        least = lost(weight, torch.linalg.lstsq(other, dense @ weight.T).solution.T, dense, other)
        alone = replace(stats, drift=None, derived={})
        nearer, plain = (
            compress(weight, SPEC, given, "float16").to_dense() for given in (stats, alone)
        )
        two += lost(weight, nearer, dense, other) - least
        one += lost(weight, plain, dense, other) - least
    assert two < 0.5 * one


def test_a_drift_of_another_width_is_refused():
    weight, stats = site()
    with pytest.raises(PlanError, match="'drift' has 7 inputs"):
        compress(weight, SPEC, replace(stats, drift=torch.zeros(7, 7)), "float16")
