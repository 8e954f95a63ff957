import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import within
from autocomp.methods._uniform import AffineGrid
from autocomp.methods.compose import compress, layout
from autocomp.methods.quantization.owq import OwqSpec, weak_columns
from autocomp.testing.methods import output_error, site


def made(token, weight, stats):
    return compress(weight, LayerSpec.parse(token), stats, "float16")


def test_the_counts_of_the_paper():
    """A 7B model at 3.01 bits: 6 columns in attention, 2 in gate and up, 6 in down.

    12/7 of the average goes to attention and three eighths of that to the MLP.
    """
    attention = OwqSpec(3, target=3 + 0.01 * 12 / 7)
    mlp = OwqSpec(3, target=3 + 0.01 * 12 / 7 * 0.375)
    assert [attention.columns(4096), mlp.columns(4096), mlp.columns(11008)] == [6, 2, 6]


@pytest.mark.parametrize("options", ["w3", "w3g8-mse", "w4-sym"])
def test_without_kept_columns_it_is_gptq(options):
    weight, stats = site()
    owq, gptq = (
        made(f"owq-{options}-t{options[1]}", weight, stats),
        made(f"gptq-{options}", weight, stats),
    )
    assert owq.layout == gptq.layout
    for name, tensor in gptq.tensors.items():
        assert torch.equal(owq.tensors[name], tensor)


def test_with_all_columns_kept_nothing_is_lost():
    weight, stats = site()
    dense = made("owq-w2-t16", weight, stats).to_dense()
    assert torch.equal(dense, weight.half().float())


def test_with_a_diagonal_second_moment_the_loss_is_what_the_others_lose():
    """Kept are the largest λ; the rest of them is the loss when the grid stays."""
    weight, stats = site()
    diagonal = stats.hessian.diagonal()
    spec = OwqSpec(3, 8, target=4.5)
    grid = AffineGrid.fit(weight, spec)
    sensitivity = diagonal * (grid.nearest(weight) - weight).square().sum(dim=0)
    weak = weak_columns(weight, stats.hessian, grid, spec)
    count = spec.columns(32)
    assert torch.equal(weak.nonzero()[:, 0], sensitivity.topk(count).indices.sort().values)
    # the ends of each grid are exact, so that leaving other columns out does not move it
    weight = weight.clamp(-2.9, 3.9)
    weight[:, ::8], weight[:, 1::8] = -3.0, 4.0
    stats = Stats(hessian=torch.diag(diagonal))
    found = made("owq-w3g8-t3", weight, stats)
    kept = made("owq-w3g8-t4.5", weight, stats)
    grid = AffineGrid.fit(weight, spec)
    sensitivity = diagonal * (grid.nearest(weight) - weight).square().sum(dim=0)
    weak = weak_columns(weight, stats.hessian, grid, spec)
    assert not bool((weak[::8] | weak[1::8]).any())
    assert output_error(weight, found.to_dense(), stats) == pytest.approx(
        float(sensitivity.sum()), rel=1e-4
    )
    # float16 keeps the columns to one part in 2048
    assert output_error(weight, kept.to_dense(), stats) == pytest.approx(
        float(sensitivity[~weak].sum()), rel=1e-3
    )


def test_kept_columns_take_up_the_errors_of_the_others():
    """Their values move off the original, and the output gains by it."""
    weight, stats = site()
    found = made("owq-w3g8-t4.5", weight, stats)
    columns = within(found.tensors, "correction")["index"].long()
    assert bool(((found.to_dense() - weight)[:, columns].abs() > 0.01).any())
    frozen = found.to_dense()
    frozen[:, columns] = weight[:, columns]
    assert output_error(weight, found.to_dense(), stats) < output_error(weight, frozen, stats)


def test_a_kept_column_has_its_codes_too():
    plain, kept = (
        layout(LayerSpec.parse(token), (24, 32), "float16").nbytes
        for token in ("gptq-w3", "owq-w3-t4")
    )
    assert OwqSpec(3, target=4.0).columns(32) == 2
    assert kept == plain + 2 * 24 * 2 + 2 * 2


def test_averages_out_of_reach():
    for token in ("owq-w3-t2.9", "owq-w3-t17"):
        with pytest.raises(PlanError, match="average lies between"):
            LayerSpec.parse(token)
