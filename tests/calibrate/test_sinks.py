"""Which tokens are sinks, and their statistics against a direct computation."""

import pytest
import torch

from autocomp.calibrate.collect import Collect
from autocomp.calibrate.sinks import SINK_RATIO, sink_masks
from autocomp.calibrate.stream import CalibrationStream
from autocomp.calibrate.walker import BlockWalker
from autocomp.core.seeds import SeedTree
from autocomp.models import load, structure

WINDOWS = torch.randint(3, 260, (5, 24), generator=torch.Generator().manual_seed(0))


def test_first_positions_and_outliers_on_either_side_are_sinks():
    calm = torch.ones(2, 6)
    entering, leaving = calm.clone(), calm.clone()
    entering[0, 2] = 1.01 * SINK_RATIO
    entering[0, 3] = 0.99 * SINK_RATIO
    leaving[1, 5] = 100.0
    first, second = sink_masks([entering[:1], entering[1:]], [leaving[:1], leaving[1:]])
    assert first.nonzero().flatten().tolist() == [0, 2]
    assert second.nonzero().flatten().tolist() == [0, 5]


@pytest.fixture
def massive(tiny_llama_path):
    """A model in which one token of the vocabulary is an outlier from the first block on."""
    loaded = load(str(tiny_llama_path))
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[WINDOWS[1, 7]] *= 30
    return loaded


def test_moments_and_rows_are_kept_apart(massive):
    walker = BlockWalker(structure(massive.model), WINDOWS, batch_size=2)

    def run(collect: Collect):
        stream = CalibrationStream(walker, massive.sketch, SeedTree(0), "d", 500, collect=collect)
        for _ in stream.forward():
            continue
        return {block.block: block for block in stream.backward()}

    plain, found = run(Collect(gradients=True)), run(Collect(gradients=True, sinks=True))
    place = WINDOWS.eq(WINDOWS[1, 7])
    place[:, 0] = True
    sinks = place.flatten()
    for block in found.values():
        assert block.sinks.keys() == block.stats.keys()
        for name, apart in block.sinks.items():
            stats = block.stats[name]
            x, g = stats.sample, stats.sample_gradient
            assert torch.equal(apart.sampled, sinks)
            assert apart.tokens == WINDOWS.numel()
            torch.testing.assert_close(apart.inputs, x[sinks], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(apart.gradients, g[sinks])
            for moment, rows in ((apart.hessian, x[~sinks]), (apart.fisher, g[~sinks])):
                direct = rows.T @ rows / len(rows)
                assert (moment - direct).abs().max() < 1e-3 * direct.abs().max()
            # What weights are compressed with does not depend on what a score asks for.
            assert torch.equal(stats.hessian, plain[block.block].stats[name].hessian)
            assert torch.equal(stats.fisher, plain[block.block].stats[name].fisher)


def test_nothing_is_kept_that_nobody_asked_for(tiny_llama_path):
    loaded = load(str(tiny_llama_path))
    walker = BlockWalker(structure(loaded.model), WINDOWS, batch_size=2)
    stream = CalibrationStream(walker, loaded.sketch, SeedTree(0), "d", 500)
    for _ in stream.forward():
        continue
    for block in stream.backward():
        assert not block.sinks
        assert all(stats.sample_gradient is None for stats in block.stats.values())
    assert stream.end.tokens is None
    assert stream.end.token_gradient is None


def test_gradients_at_sampled_tokens_make_up_the_embeddings_fisher(tiny_llama_path):
    loaded = load(str(tiny_llama_path))
    walker = BlockWalker(structure(loaded.model), WINDOWS, batch_size=2)
    stream = CalibrationStream(
        walker, loaded.sketch, SeedTree(0), "d", WINDOWS.numel(), collect=Collect(gradients=True)
    )
    for _ in (*stream.forward(), *stream.backward()):
        continue
    rows = stream.end.token_gradient
    assert torch.equal(stream.end.tokens, WINDOWS.flatten())
    torch.testing.assert_close(rows.T @ rows / len(rows), stream.end.embedding_fisher)
