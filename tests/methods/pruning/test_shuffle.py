"""Shuffle: an order of the inputs that lets an N:M mask keep more, stored as two bytes each."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from autocomp.core.errors import PlanError, UnsupportedError
from autocomp.core.method import Reader
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.methods import compose
from autocomp.methods._masks import pattern_mask
from autocomp.methods.pruning.magnitude import MagnitudeSpec
from autocomp.methods.pruning.shuffle import Pattern, Shuffle, ShuffleSpec, deal, exchange
from autocomp.testing.methods import compress, output_error, site


def retained(score, order, keep=2, m=4):
    """Return the sum of what an N:M mask keeps of scores in an order."""
    moved = score[:, order]
    return float((moved * pattern_mask(moved, MagnitudeSpec(keep=keep, m=m))).sum())


def scores(seed, shape=(8, 32)):
    """Return scores whose good inputs lie together."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.linspace(3, 0.1, shape[1])
    return torch.rand(shape, generator=generator) * size


def test_ranks_are_dealt_like_cards():
    assert deal(torch.tensor([1.0, 7, 2, 6, 3, 5, 4, 0]), 4).tolist() == [1, 5, 4, 0, 3, 6, 2, 7]
    assert deal(torch.zeros(8), 4).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize(("keep", "m"), [(2, 4), (1, 4), (4, 8), (3, 4)])
def test_dealing_retains_more_of_clustered_inputs_and_exchanging_never_less(keep, m):
    for seed in range(5):
        score = scores(seed)
        dealt = deal(score.mean(dim=0), m)
        assert retained(score, dealt, keep, m) > 1.02 * retained(score, range(32), keep, m)
        for start in (dealt, torch.arange(32)):
            moved = exchange([Pattern(score, keep, m)], start.view(-1, m)).flatten()
            assert moved.sort().values.tolist() == list(range(32))
            before, after = (retained(score, order, keep, m) for order in (start, moved))
            assert after >= before * (1 - 1e-6)


def test_exchange_comes_close_to_the_best_of_all_orders():
    """By brute force over eight inputs in two patterns, on average over seeds."""
    share = 0.0
    for seed in range(10):
        score = torch.rand((6, 8), generator=torch.Generator().manual_seed(seed))
        orders = [
            (0, *rest) for rest in permutations(range(1, 8)) if list(rest[:3]) == sorted(rest[:3])
        ]
        best = max(
            retained(score, list(order))
            for order in orders
            if order[4:] == tuple(sorted(order[4:]))
        )
        start = torch.arange(8).view(2, 4)
        found = retained(score, exchange([Pattern(score, 2, 4)], start).flatten())
        worst = retained(score, start.flatten())
        share += (found - worst) / max(best - worst, 1e-9) / 10
    assert share > 0.8


def test_gain_is_the_change_of_what_is_retained():
    score, others = scores(1, (5, 8)), torch.tensor([[0, 2, 4], [1, 3, 5]])
    gains = Pattern(score, 2, 4).gains(torch.tensor([6, 7]), others)
    for row, rest in enumerate(others.tolist()):
        for column, member in enumerate((6, 7)):
            without = score[:, rest].topk(2, dim=1).values.sum()
            expected = score[:, [*rest, member]].topk(2, dim=1).values.sum() - without
            assert float(gains[row, column]) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_it_is_the_mask_on_the_shuffled_weight():
    """Shuffle, prune, and undo: a legal weight, two bytes an input more."""
    weight, stats = site()
    for token in ("wanda-2:4", "esparse-1:4", "sparsegpt-4:8", "wanda-2:4+dsnot+gptq-w4g8"):
        found = compress(f"shuffle+{token}", weight, stats, "float16")
        order = found.tensors["input.order"].long()
        assert order.sort().values.tolist() == list(range(32))
        moved = replace(
            stats,
            hessian=stats.hessian[order][:, order],
            norms=stats.norms[order],
            mean=stats.mean[order],
            sample=stats.sample[:, order],
            derived={},
        )
        direct = compress(token, weight[:, order], moved, "float16")
        assert torch.equal(found.to_dense()[:, order], direct.to_dense())
        assert found.nbytes == direct.nbytes + 2 * 32


def test_shuffled_masks_cost_less_output():
    """On average over seeds, for every mask."""
    for token in ("wanda-2:4", "esparse-2:4", "magnitude-1:4"):
        plain = shuffled = 0.0
        for seed in range(8):
            weight, stats = site(seed)
            size = torch.linspace(4, 0.25, 32)
            weight = weight * size
            plain += output_error(
                weight, compress(token, weight, stats, "float16").to_dense(), stats
            )
            found = compress(f"shuffle+{token}", weight, stats, "float16")
            shuffled += output_error(weight, found.to_dense(), stats)
        assert shuffled < 0.9 * plain, token


def test_blocks_exchange_within_themselves_only():
    weight, stats = site()
    mask = LayerSpec.parse("wanda-2:4")
    readers = [Reader(weight, mask, lambda w, s: w, lambda x, s: x)]
    orders = {
        block: Shuffle().fit(readers, ShuffleSpec(block=block), stats)["order"].long()
        for block in (0, 4, 16, 256)
    }
    score = weight.abs() * stats.norms
    assert torch.equal(orders[0], deal(score.mean(dim=0), 4))
    assert torch.equal(orders[0], orders[4]), "one pattern has nobody to exchange with"
    for start in (0, 16):
        part = slice(start, start + 16)
        assert set(orders[16][part].tolist()) == set(orders[0][part].tolist())
    kept = [retained(score, orders[block]) for block in (0, 16, 256)]
    assert kept == sorted(kept)
    assert kept[0] < kept[2]


def test_readers_of_one_input_share_an_order():
    (one, stats), (two, _) = site(0), site(1, (16, 32))
    specs = [LayerSpec.parse(f"shuffle+wanda-{pattern}") for pattern in ("2:4", "4:8")]
    order = compose.fit_input([one, two], specs, stats)["order"].long()
    assert order.sort().values.tolist() == list(range(32))
    both = sum(retained(w.abs() * stats.norms, order, 4, 8) for w in (one, two))
    assert both > sum(retained(w.abs() * stats.norms, range(32), 4, 8) for w in (one, two))


def test_wide_inputs_take_four_bytes():
    assert ShuffleSpec.parse("shuffle-b128").block == 128
    assert Shuffle().step(ShuffleSpec(), 1 << 16).tensors()["order"].nbytes == 4 << 16


def test_needs_patterns_to_deal_to():
    for token in ("shuffle+rtn-w4", "shuffle+wanda-s50", "shuffle+svd-r8"):
        with pytest.raises(UnsupportedError, match="N:M mask"):
            compose.check(LayerSpec.parse(token), "linear", (24, 32))
    with pytest.raises(PlanError, match="'norms'"):
        compress("shuffle+wanda-2:4", site()[0], Stats(), "float16")
    with pytest.raises(PlanError, match="cannot read"):
        LayerSpec.parse("shuffle-b0+wanda-2:4")
