"""H and G against quantities computed another way, on the whole model at once."""

from pathlib import Path

import pytest
import torch

from autocomp.calibrate.collect import Collect
from autocomp.calibrate.statistics import block_sites, input_statistics
from autocomp.calibrate.stream import CalibrationStream, EndStatistics, InputSpill, draw_labels
from autocomp.calibrate.walker import Batch, BlockWalker
from autocomp.core.seeds import SeedTree
from autocomp.core.spec import LayerSpec
from autocomp.data import load_corpus
from autocomp.data import windows as windows_of
from autocomp.methods.compose import compress
from autocomp.models import LoadedModel, load, structure
from autocomp.models.tiny import FAMILIES, tiny
from autocomp.search.scores.base import embedding_score, head_score


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedModel:
    return load(str(tiny(request.param, tmp_path / request.param)))


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(3, 260, (5, 24), generator=torch.Generator().manual_seed(0))


def walker(loaded: LoadedModel, windows: torch.Tensor) -> BlockWalker:
    return BlockWalker(structure(loaded.model), windows, batch_size=2)


def test_walking_blocks_equals_the_whole_forward_pass(loaded, windows):
    walk = walker(loaded, windows)
    last = None
    for index, batches in walk.walk():
        last = walk.advance(index, batches)
    hidden = torch.cat([walk.layout.final_norm(batch.hidden) for batch in last])
    with torch.no_grad():
        whole = loaded.model.base_model(windows).last_hidden_state
    torch.testing.assert_close(hidden, whole, rtol=1e-5, atol=1e-5)


def test_hessian_is_the_second_moment_of_the_inputs(loaded, windows):
    walk = walker(loaded, windows)
    sites = block_sites(loaded.sketch, 1)
    site = sites[-1]
    seen = []
    module = loaded.model.get_submodule(site.name)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        loaded.model(windows)
    handle.remove()
    rows = torch.cat(seen)
    for index, batches in walk.walk():
        if index == 1:
            stats = input_statistics(walk, batches, sites, digest="d", sample_tokens=7)[site.name]
    torch.testing.assert_close(stats.hessian, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stats.norms, rows.square().mean(0).sqrt(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stats.absmax, rows.abs().amax(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.sample, rows[:7], rtol=1e-4, atol=1e-5)
    assert stats.tokens == windows.numel()


def test_sites_that_read_one_input_share_their_statistics(tiny_llama_path, windows):
    loaded = load(str(tiny_llama_path))
    walk = walker(loaded, windows)
    sites = block_sites(loaded.sketch, 0)
    stats = input_statistics(walk, walk.first_inputs(), sites, digest="d")
    by_role = {site.role: stats[site.name] for site in sites}
    assert by_role["q_proj"] is by_role["v_proj"]
    assert by_role["gate_proj"] is by_role["up_proj"]
    assert by_role["q_proj"] is not by_role["o_proj"]


def test_fisher_is_the_second_moment_of_the_loss_gradient(loaded, windows):
    """The streamed G equals autograd through the whole model with the same sampled labels.

    So does the sensitivity of each weight, the mean square of a token's gradient.
    """
    stream = CalibrationStream(
        walker(loaded, windows),
        loaded.sketch,
        SeedTree(0),
        "d",
        sample_tokens=500,
        collect=Collect(sensitivity=True),
    )
    for _ in stream.forward():
        pass
    streamed = {name: s for found in stream.backward() for name, s in found.stats.items()}

    generator = torch.Generator().manual_seed(SeedTree(0).child("labels").seed)
    names = [site.name for site in loaded.sketch.sites if site.kind == "linear"]
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def keep(name):
        def hook(_, args, output):
            output.requires_grad_(True)
            output.retain_grad()
            outputs[name].append(output)
            inputs[name].append(args[0].detach().flatten(0, -2))

        return hook

    handles = [
        loaded.model.get_submodule(name).register_forward_hook(keep(name)) for name in names
    ]
    for start in range(0, len(windows), 2):
        logits = loaded.model(windows[start : start + 2]).logits.flatten(0, 1)
        labels = draw_labels(torch.softmax(logits.detach(), -1), generator)
        torch.nn.functional.cross_entropy(logits, labels.squeeze(1), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    for name in names:
        gradient = torch.cat([output.grad.flatten(0, -2) for output in outputs[name]])
        expected = gradient.T @ gradient / len(gradient)
        scale = expected.abs().max()
        assert (streamed[name].fisher - expected).abs().max() < 1e-3 * scale, name
        squares = gradient.square().T @ torch.cat(inputs[name]).square() / len(gradient)
        found = streamed[name].sensitivity
        assert (found - squares).abs().max() < 1e-3 * squares.max(), name
    assert stream.end.frequency.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["llama", "gemma", "phi", "opt"])
def test_embedding_fisher_is_the_gradient_at_a_row_of_the_table(family, tmp_path):
    """Every token occurs once, so the table's own gradient has one occurrence a row."""
    loaded = load(str(tiny(family, tmp_path / family)))
    windows = torch.arange(3, 51).reshape(2, 24)
    stream = CalibrationStream(walker(loaded, windows), loaded.sketch, SeedTree(0), "d", 100)
    for _ in (*stream.forward(), *stream.backward()):
        continue
    generator = torch.Generator().manual_seed(SeedTree(0).child("labels").seed)
    table = loaded.model.get_input_embeddings().weight.requires_grad_(True)
    head = loaded.model.get_output_embeddings()
    hidden = loaded.model.base_model(windows).last_hidden_state.flatten(0, 1)
    logits = torch.nn.functional.linear(hidden, head.weight.detach(), head.bias)
    labels = draw_labels(torch.softmax(logits.detach(), -1), generator)
    torch.nn.functional.cross_entropy(logits, labels.squeeze(1), reduction="sum").backward()
    rows = table.grad[windows.flatten()]
    expected = rows.T @ rows / len(rows)
    assert (stream.end.embedding_fisher - expected).abs().max() < 1e-3 * expected.abs().max()


def test_drop_score_counts_what_reaches_the_residual_stream(tmp_path):
    """In front of a norm the length of an output is irrelevant: there gᵀy is zero."""
    loaded = load(str(tiny("gemma3", tmp_path / "model")))
    windows = torch.randint(3, 260, (5, 24), generator=torch.Generator().manual_seed(0))
    walk = walker(loaded, windows)
    stream = CalibrationStream(walk, loaded.sketch, SeedTree(0), "d", 100)
    for _ in stream.forward():
        continue
    drop = {name: score for found in stream.backward() for name, score in found.drop.items()}
    before = {name: walk.layout.get(name) for name in drop}
    walk.outputs.update(before)
    for _ in stream.forward():
        continue
    inside = {name: score for found in stream.backward() for name, score in found.drop.items()}
    assert all(inside[name] < 1e-3 * drop[name] for name in drop)


def test_inputs_survive_the_trip_to_disk(tmp_path):
    batches = [Batch(torch.randn(2, 3, 4), {}) for _ in range(3)]
    spill = InputSpill(memory_limit_bytes=0)
    spill.put(0, batches)
    returned = spill.take(0, batches)
    for before, after in zip(batches, returned, strict=True):
        assert torch.equal(before.hidden, after.hidden)


def test_labels_follow_their_probabilities():
    share = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).expand(20_000, 4)
    labels = draw_labels(share, torch.Generator().manual_seed(0))
    found = torch.bincount(labels.flatten(), minlength=4) / len(labels)
    assert (found - share[0]).abs().max() < 0.02
    assert found[1] == 0


def test_end_statistics_survive_a_file_and_a_damaged_one_counts_as_absent(
    tiny_llama_path, windows, tmp_path
):
    loaded = load(str(tiny_llama_path))
    stream = CalibrationStream(walker(loaded, windows), loaded.sketch, SeedTree(0), "d", 50)
    for _ in (*stream.forward(), *stream.backward()):
        continue
    path = tmp_path / "end.safetensors"
    stream.end.save(path)
    again = EndStatistics.load(path)
    assert again.head_bias is None
    assert torch.equal(again.head_hessian, stream.end.head_hessian)
    with torch.no_grad():
        hidden = loaded.model.base_model(windows).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(
        again.head_hessian, hidden.T @ hidden / len(hidden), rtol=1e-3, atol=1e-5
    )
    tied = again.stats("embedding", tied=True, digest="d").hessian
    torch.testing.assert_close(tied, again.head_hessian + again.embedding_fisher)
    untied = again.stats("embedding", tied=False, digest="d").hessian
    torch.testing.assert_close(untied, again.embedding_fisher)
    path.write_bytes(path.read_bytes()[:-9])
    assert EndStatistics.load(path) is None
    assert EndStatistics.load(tmp_path / "absent") is None


def test_rounding_a_tied_embedding_by_its_cost_beats_nearest(trained_llama_path):
    """GPTQ on G_e + H_h lowers the score that RTN has at the same bytes."""
    loaded = load(str(trained_llama_path))
    text = windows_of(
        load_corpus("pydoc"), "calibration", loaded.tokenizer, tokens=2048, length=64
    )
    walk = BlockWalker(structure(loaded.model), text.input_ids, batch_size=8)
    stream = CalibrationStream(walk, loaded.sketch, SeedTree(0), "d", 1024)
    for _ in (*stream.forward(), *stream.backward()):
        continue
    weight = structure(loaded.model).head_weight().float()
    stats = stream.end.stats("embedding", tied=True, digest="d")
    score = {}
    for token in ("rtn-w3g64", "gptq-w3g64"):
        dense = compress(weight, LayerSpec.parse(token), stats, "float16").to_dense()
        score[token] = head_score(weight, dense, stream.end) + embedding_score(
            dense - weight, stream.end
        )
    assert score["gptq-w3g64"] < 0.9 * score["rtn-w3g64"]
