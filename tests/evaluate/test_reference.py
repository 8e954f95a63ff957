"""What is kept of the base: exact with its own head, bounded with another, from a file too."""

import copy

import pytest
import torch

from autocomp.core.errors import ConfigError, StoreError
from autocomp.evaluate.divergence import DivergenceMeter
from autocomp.evaluate.head import final_hidden, head_weight, normalise
from autocomp.evaluate.reference import (
    TOP,
    BaseReference,
    SavedReference,
    is_saved_reference,
    reference_of,
)
from autocomp.formats.io import save
from autocomp.models import load

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(trained_llama_path):
    return load(str(trained_llama_path)).model.float()


@pytest.fixture(scope="module")
def windows():
    return torch.randint(3, 260, (3, 40), generator=torch.Generator().manual_seed(1))


def changed(base, *, head, scale=0.05):
    """Return a copy with noise on the first MLP, and on the head if asked for."""
    candidate = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(2)
    weights = [candidate.model.layers[0].mlp.down_proj.weight]
    if head:
        weights.append(candidate.get_output_embeddings().weight)
    with torch.no_grad():
        for weight in weights:
            weight += scale * weight.std() * torch.randn(weight.shape, generator=generator)
    return candidate


@pytest.fixture
def saved(base, windows, tmp_path):
    path = tmp_path / "base.safetensors"
    BaseReference(base, windows, batch_size=2).save(path, {"text": "random"})
    return SavedReference(path, CPU)


def test_a_saved_reference_is_exact_while_the_head_is_unchanged(base, windows, saved):
    candidate = changed(base, head=False)
    live = DivergenceMeter(BaseReference(base, windows, batch_size=2))
    expected = live.measure(candidate, range(3), head_token="dense")
    found = DivergenceMeter(saved).measure(candidate, range(3), head_token="dense")
    assert min(expected.kl_nats) > 1e-4
    assert found.kl_nats == pytest.approx(expected.kl_nats, abs=1e-5)
    assert found.top1 == expected.top1
    assert found.nll_nats == expected.nll_nats
    assert saved.nll_nats() == pytest.approx(live.reference.nll_nats())
    assert saved.described["text"] == "random"


def test_another_head_is_off_by_no_more_than_the_stated_bound(base, windows, saved):
    candidate = changed(base, head=True)
    assert 0.0 < saved.rest_probability < 1.0
    live = DivergenceMeter(BaseReference(base, windows, batch_size=2))
    exact = live.measure(candidate, range(3), head_token="changed").kl_nats
    found = DivergenceMeter(saved).measure(candidate, range(3), head_token="changed").kl_nats
    difference = head_weight(candidate) - head_weight(base)
    for window in range(3):
        hidden = final_hidden(candidate, windows[window : window + 1])[0, :-1]
        largest = (hidden @ difference.T).abs().max(dim=-1).values
        rest = 1.0 - saved._kept["top_p"][window].sum(dim=-1)
        bound = (rest * largest).mean().item()
        assert abs(found[window] - exact[window]) <= bound + 1e-5
        # The rest of the vocabulary is not ignored: its expectation under the old head is kept.
        assert abs(found[window] - exact[window]) < 0.5 * bound


def test_more_than_the_whole_vocabulary_leaves_no_rest(base, windows, tmp_path, monkeypatch):
    monkeypatch.setattr("autocomp.evaluate.reference.TOP", 10**6)
    path = tmp_path / "all.safetensors"
    BaseReference(base, windows).save(path, {})
    candidate = changed(base, head=True)
    live = DivergenceMeter(BaseReference(base, windows))
    exact = live.measure(candidate, range(3), head_token="changed").kl_nats
    found = DivergenceMeter(SavedReference(path, CPU)).measure(
        candidate, range(3), head_token="changed"
    )
    assert found.kl_nats == pytest.approx(exact, abs=1e-5)
    assert TOP == 64


def test_a_file_that_is_no_reference_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save(path, {"x": torch.zeros(1)}, {"kind": "weights"})
    assert is_saved_reference(str(path))
    with pytest.raises(ConfigError, match=r"not a saved reference.*--save-reference"):
        SavedReference(path, CPU)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match="truncated or damaged"):
        SavedReference(path, CPU)
    assert not is_saved_reference(str(tmp_path))
    assert not is_saved_reference("missing.safetensors")


def test_the_floor_is_what_bf16_costs_and_is_taken_off(trained_llama_path, base, windows):
    body = load(str(trained_llama_path), dtype=torch.bfloat16).model
    reference = BaseReference(base, windows)
    raw = DivergenceMeter(reference).measure(body, range(3), head_token="bf16").kl_nats
    meter = DivergenceMeter(reference, body)
    assert meter.floor_nats == pytest.approx(sum(raw) / 3)
    assert meter.floor_nats > 1e-6
    assert sum(meter.measure(body, range(3), head_token="bf16").kl_nats) == pytest.approx(
        0.0, abs=1e-9
    )
    exact = DivergenceMeter(reference, base)
    assert abs(exact.floor_nats) < 1e-6


def test_the_reference_is_fp32_where_that_fits(trained_llama_path, windows, monkeypatch):
    body = load(str(trained_llama_path), dtype=torch.bfloat16).model
    calls = []

    def widen():
        calls.append(1)
        return load(str(trained_llama_path), dtype=torch.float32).model

    assert reference_of(body, widen, windows, 4).dtype == torch.float32
    monkeypatch.setattr("autocomp.evaluate.reference.memory_bytes", lambda device: 1)
    assert reference_of(body, widen, windows, 4).dtype == torch.bfloat16
    assert calls == [1]


def test_agreement_counts_equal_best_tokens(base, windows):
    candidate = changed(base, head=True, scale=0.7)
    scores = DivergenceMeter(BaseReference(base, windows)).measure(
        candidate, range(3), head_token="changed"
    )
    with torch.no_grad():
        same = base(windows).logits.argmax(-1) == candidate(windows).logits.argmax(-1)
    expected = same[:, :-1].double().mean(dim=1).tolist()
    assert list(scores.top1) == pytest.approx(expected, abs=1 / 39)
    assert 0.0 < sum(expected) < 3.0


def test_normalise_is_logsumexp_and_argmax():
    logits = torch.randn(5, 33, generator=torch.Generator().manual_seed(0)) * 30
    expected, best = torch.logsumexp(logits, dim=-1), logits.argmax(dim=-1)
    found, where = normalise(logits.clone())
    assert torch.allclose(found, expected, rtol=1e-6)
    assert torch.equal(where, best)
