"""Perplexity against a plain transformers loop."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.evaluate.head import CHUNK_TOKENS
from autocomp.evaluate.perplexity import perplexity
from autocomp.layers.native import load as load_native
from autocomp.layers.native import write_native
from autocomp.models import load
from autocomp.models.tiny import FAMILIES, tiny
from autocomp.testing.plans import compress_plan, random_plan


def some_windows(count: int, length: int) -> torch.Tensor:
    return torch.randint(3, 260, (count, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def plain(model, windows) -> list[float]:
    """Whole logits, one window at a time, averaged in fp64."""
    found = []
    for window in windows:
        logits = model(window[None]).logits[0, :-1].float()
        found.append(functional.cross_entropy(logits.double(), window[1:]).item())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_loop(tmp_path, family):
    folder = str(tiny(family, tmp_path / family))
    windows = some_windows(3, 300)  # more than a chunk, and no multiple of it
    expected = plain(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), windows)
    found = perplexity(load(folder, dtype=torch.float32).model, windows, batch_size=2)
    # fp32 logits are good to about 1e-6, whose mean over 299 tokens is smaller still
    assert found == pytest.approx(expected, abs=1e-5)
    assert math.exp(sum(found) / 3) == pytest.approx(math.exp(sum(expected) / 3), rel=1e-5)


def test_of_a_model_that_knows_nothing_it_is_the_size_of_the_vocabulary(tiny_llama_path):
    model = load(str(tiny_llama_path), dtype=torch.float32).model
    model.get_output_embeddings().weight.data.zero_()
    found = perplexity(model, some_windows(2, 40), batch_size=2)
    assert math.exp(sum(found) / 2) == pytest.approx(model.config.vocab_size, rel=1e-6)


def test_packed_models_are_measured_as_they_compute(tmp_path, tiny_llama_path):
    loaded = load(str(tiny_llama_path), dtype=torch.float32)
    plan = random_plan(loaded.sketch, 1)
    weights = compress_plan(loaded.model, loaded.sketch, plan)
    sketch: Sketch = loaded.sketch
    folder = tmp_path / "made"
    write_native(folder, plan=plan, sketch=sketch, weights=weights, model=loaded.model)
    windows = some_windows(2, 40)
    model = load_native(folder, dtype=torch.float32)
    assert plan != Plan({})
    assert perplexity(model, windows, batch_size=2) == pytest.approx(plain(model, windows), 1e-5)


def test_progress_and_batches_do_not_matter_to_the_values(tiny_llama_path):
    model = load(str(tiny_llama_path), dtype=torch.float32).model
    windows, told = some_windows(5, 30), []
    whole = perplexity(model, windows, batch_size=5)
    parts = perplexity(model, windows, batch_size=2, advance=told.append)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert told == [60, 60, 30]


class LargestLogits(TorchDispatchMode):
    """Notes the most rows of any result that is as wide as the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape[-1:] == (self.vocabulary,):
            self.rows = max(self.rows, out.numel() // self.vocabulary)
        return out


def test_logits_never_exist_beyond_a_chunk(tmp_path):
    model = load(str(tiny("llama-untied", tmp_path / "model")), dtype=torch.float32).model
    with LargestLogits(model.config.vocab_size) as seen:
        perplexity(model, some_windows(4, 300), batch_size=4)
    # the transposed head is (64, vocab), which is smaller than a chunk of logits
    assert seen.rows == CHUNK_TOKENS
