import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autocomp.core.errors import ConfigError
from autocomp.models import load
from autocomp.models.tiny import byte_tokenizer, tiny, train_tiny


def test_same_seed_same_weights(tmp_path: Path) -> None:
    first, again, other = (
        load_file(tiny("llama", tmp_path / name, seed=seed) / "model.safetensors")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    tiny("llama", tmp_path / "model")
    assert torch.equal(torch.rand(1), expected)


def test_vectors_are_random(tiny_gpt2_path: Path) -> None:
    vectors = [p for p in load(str(tiny_gpt2_path)).model.parameters() if p.dim() == 1]
    assert all(vector.std() > 0.05 for vector in vectors)


def test_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'llama'"):
        tiny("lama", tmp_path)


@pytest.mark.parametrize("text", ["plain", "naïve — ‘quoted’\n\ttab", "<s> is a token", "日本"])
def test_any_text_round_trips(text: str) -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 259


def test_training_beats_chance_and_the_past(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "model")
    before = load_file(folder / "model.safetensors")["model.norm.weight"]
    loss = train_tiny(folder, "the quick brown fox jumps over the lazy dog. " * 20, steps=30)
    assert loss < 0.6 * math.log(256)
    assert not torch.equal(load_file(folder / "model.safetensors")["model.norm.weight"], before)
