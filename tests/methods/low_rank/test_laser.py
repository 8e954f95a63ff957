import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.core.spec import LayerSpec
from autocomp.methods import compose
from autocomp.methods.low_rank.laser import select
from autocomp.testing.methods import compress, site

SHAPES = [(24, 40), (40, 24), (24, 24)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("percent", "rank"), [(10, 2), (50, 12), (75, 18), (100, 24), (1, 1)])
def test_is_the_best_weight_of_the_share_of_the_rank(shape, percent, rank):
    weight = site(shape=shape)[0]
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    expected = left[:, :rank] * values[:rank] @ right[:rank]
    found = compress(f"laser-k{percent}", weight, None, "float32").to_dense()
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert torch.linalg.matrix_rank(found.double(), atol=1e-4) <= rank


@pytest.mark.parametrize("percent", [20, 75])
def test_a_second_reduction_changes_nothing(percent):
    once = compress(f"laser-k{percent}", site()[0], None, "float32").to_dense()
    twice = compress(f"laser-k{percent}", once, None, "float32").to_dense()
    assert torch.allclose(twice, once, atol=1e-5)


@pytest.mark.parametrize(
    ("token", "shape", "nbytes"),
    [
        ("laser-k25", (24, 24), 2 * 6 * (24 + 24)),
        ("laser-k50", (24, 24), 2 * 24 * 24),  # 12 · 48 = 24 · 24: the factors save nothing
        ("laser-k99", (24, 24), 2 * 24 * 24),
        ("laser-k70", (16, 48), 2 * 11 * (16 + 48)),  # of an oblong weight they still do
        ("laser-k80", (16, 48), 2 * 16 * 48),
        ("laser-k25+rtn-w8g8", (24, 24), 6 * 48 + 3 * 24 + 6 * 3 * 3),
        ("laser-k75+rtn-w8g8", (24, 24), 24 * 24 + 24 * 3 * 3),
    ],
)
def test_counts_as_what_it_ships_in(token, shape, nbytes):
    """Factors where they are smaller, else every entry of the weight."""
    assert compose.layout(LayerSpec.parse(token), shape, "float16").nbytes == nbytes


def test_a_dense_weight_of_lower_rank_is_rounded_like_any_weight():
    weight, stats = site()
    reduced = compress("laser-k75", weight, stats, "float32").to_dense()
    for quantizer in ("rtn-w4g8", "gptq-w4g8"):
        both = compress(f"laser-k75+{quantizer}", weight, stats, "float16")
        alone = compress(quantizer, reduced, stats, "float16")
        assert both.layout == alone.layout
        assert torch.equal(both.to_dense(), alone.to_dense())


def test_tokens():
    for token in ("laser-k10", "laser-k2.5", "laser-k100"):
        assert LayerSpec.parse(token).token() == token
    for token in ("laser-r8", "laser-k", "laser-k10.", "laser-p10"):
        with pytest.raises(PlanError, match="cannot read"):
            LayerSpec.parse(token)
    for token in ("laser-k0", "laser-k101"):
        with pytest.raises(PlanError, match=r"share must lie in \(0, 100\]"):
            LayerSpec.parse(token)


GAINS = {("early", 10): 1.0, ("early", 50): 3.0, ("late", 10): 2.0, ("late", 50): -1.0}
CANDIDATES = {"early": (10, 50), "middle": (), "late": (10, 50)}


def test_selection_is_greedy_from_the_last_layer_on():
    """``late`` is decided first; beside it ``early`` at 50 no longer gains, at 10 it does."""
    scores = []

    def score(kept):
        conflict = 4.0 * (kept == {"late": 10, "early": 50})
        scores.append(sum(GAINS[pair] for pair in kept.items()) - conflict)
        return scores[-1]

    assert select(CANDIDATES, score) == {"late": 10, "early": 10}
    assert len(scores) == 1 + 2 + 2


@pytest.mark.parametrize("seed", range(5))
def test_selection_never_accepts_a_lower_score(seed):
    """On a random landscape: the result scores best of the steps, each better than the last."""
    generator = torch.Generator().manual_seed(seed)
    table, reached = {}, []

    def score(kept):
        key = tuple(sorted(kept.items()))
        return table.setdefault(key, float(torch.randn((), generator=generator)))

    sites = {str(index): (1, 2, 3) for index in range(6)}
    kept = select(sites, score)
    for count in range(len(kept) + 1):
        reached.append(score(dict(list(kept.items())[:count])))
    assert reached == sorted(reached)
    assert len(set(reached)) == len(reached)


def test_nothing_is_kept_where_nothing_improves():
    assert select(CANDIDATES, lambda kept: -len(kept)) == {}
    assert select(CANDIDATES, lambda kept: 1.0) == {}
