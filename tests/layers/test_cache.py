"""The cache of ``generate`` against the evaluation, and everything that puts specs in place.

Models run in float64: a key that lies between two codes would otherwise round either way.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import autocomp
from autocomp.core.errors import UnsupportedError
from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.layers import Candidate, write_native
from autocomp.layers.cache import (
    CompressedLayer,
    CompressedSlidingLayer,
    install_generation_cache,
    set_cache_specs,
)
from autocomp.models import LoadedModel
from autocomp.models.attention import cache_spec, compressing, decode_attention, set_cache_spec
from autocomp.testing.plans import compress_plan

FINE = LayerSpec.parse("kivi-k4v2g4r8")
COARSE = LayerSpec.parse("kivi-k2v4g8r16")
BYPASS = LayerSpec.parse("bypass")
TOKENS = torch.randint(3, 260, (2, 37), generator=torch.Generator().manual_seed(0))


def compressed(loaded: LoadedModel, *specs: LayerSpec) -> LoadedModel:
    """The model in float64 with the caches of its blocks stored as ``specs`` say."""
    loaded.model.double()
    plan = Plan(dict(zip((site.name for site in loaded.sketch.caches()), specs, strict=False)))
    assert set_cache_specs(loaded.model, loaded.sketch, plan) == len(specs)
    install_generation_cache(loaded.model)
    return loaded


@torch.no_grad()
def evaluated(loaded: LoadedModel, tokens: Tensor, **options: Tensor) -> Tensor:
    with decode_attention(loaded.model):
        return loaded.model(tokens, use_cache=False, **options).logits


@torch.no_grad()
def decoded(loaded: LoadedModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The logits of token-by-token decoding from the first token on."""
    cache, logits = None, []
    for step in range(tokens.shape[1]):
        options = {}
        if mask is not None:
            seen = mask[:, : step + 1]
            options = {
                "attention_mask": seen,
                "position_ids": (seen.sum(1, keepdim=True) - 1).clamp(min=0),
            }
        found = loaded.model(
            tokens[:, step : step + 1], past_key_values=cache, use_cache=True, **options
        )
        cache = found.past_key_values
        logits.append(found.logits)
    return torch.cat(logits, 1)


def test_evaluation_is_decoding(tiny_model: LoadedModel) -> None:
    loaded = compressed(tiny_model, FINE, COARSE)
    found = evaluated(loaded, TOKENS)
    torch.testing.assert_close(found, decoded(loaded, TOKENS), rtol=0, atol=1e-4)
    with torch.no_grad():
        assert (loaded.model(TOKENS, use_cache=False).logits - found).abs().max() > 1e-2


def test_one_layer_may_stay_in_full_precision(tiny_of: Callable) -> None:
    loaded = compressed(tiny_of("llama"), FINE)
    torch.testing.assert_close(
        evaluated(loaded, TOKENS), decoded(loaded, TOKENS), rtol=0, atol=1e-4
    )
    with torch.no_grad():
        cache = loaded.model(TOKENS, use_cache=True).past_key_values
    assert [isinstance(layer, CompressedLayer) for layer in cache.layers] == [True, False]


def test_padding_on_the_left(tiny_of: Callable) -> None:
    for family in ("gpt2", "gemma3"):
        loaded = compressed(tiny_of(family), FINE, FINE)
        mask = torch.ones_like(TOKENS)
        mask[1, :13] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = evaluated(loaded, TOKENS, attention_mask=mask, position_ids=positions)
        step_by_step = decoded(loaded, TOKENS, mask)
        torch.testing.assert_close(found[0], step_by_step[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(found[1, 13:], step_by_step[1, 13:], rtol=0, atol=1e-4)


@torch.no_grad()
def greedy(loaded: LoadedModel, tokens: Tensor, count: int, **options: Tensor) -> Tensor:
    return loaded.model.generate(
        tokens, max_new_tokens=count, do_sample=False, eos_token_id=None, **options
    )


def test_generation_uses_the_cache_unasked(tiny_model: LoadedModel) -> None:
    loaded = compressed(tiny_model, FINE, COARSE)
    found = loaded.model.generate(
        TOKENS[:, :1],
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert all(isinstance(layer, CompressedLayer) for layer in found.past_key_values.layers)
    logits = evaluated(loaded, found.sequences[:, :-1])
    logged = torch.stack(found.logits, 1).double()
    torch.testing.assert_close(logged, logits, rtol=0, atol=1e-4)


def test_a_padded_prompt_generates_what_it_does_alone(tiny_of: Callable) -> None:
    """As long as nothing is stored that padding shares a group with."""
    loaded = compressed(tiny_of("llama"), *[LayerSpec.parse("kivi-k2v2g32r64")] * 2)
    mask = torch.ones_like(TOKENS)
    mask[1, :13] = 0
    both = greedy(loaded, TOKENS, 12, attention_mask=mask)
    assert torch.equal(both[0], greedy(loaded, TOKENS[:1], 12)[0])
    assert torch.equal(both[1, 13:], greedy(loaded, TOKENS[1:, 13:], 12)[0])
    longer = greedy(loaded, TOKENS, 30, attention_mask=mask)
    assert torch.equal(longer[0], greedy(loaded, TOKENS[:1], 30)[0])


def test_a_bypassed_attention_leaves_its_slot_to_the_next(tiny_of: Callable) -> None:
    loaded = tiny_of("llama")
    loaded.model.double()
    first, second = (loaded.sketch.owner[site.name] for site in loaded.sketch.caches())
    candidate = Candidate(loaded.model, loaded.sketch)
    plan = Plan({first: BYPASS, f"{first}.cache": COARSE, f"{second}.cache": FINE})
    candidate.apply(plan, lambda *_: pytest.fail("nothing to fetch"))
    assert [cache_spec(module) for module in compressing(loaded.model)] == [FINE.cache]
    install_generation_cache(loaded.model)
    torch.testing.assert_close(
        evaluated(loaded, TOKENS), decoded(loaded, TOKENS), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    "layer",
    [
        CompressedLayer(COARSE.cache),
        CompressedSlidingLayer(COARSE.cache, sliding_window=6),
        CompressedSlidingLayer(COARSE.cache, sliding_window=20),
    ],
)
def test_a_layer_holds_the_same_whatever_the_path(layer: CompressedLayer) -> None:
    keys, values = torch.randn(2, 1, 2, 50, 16, generator=torch.Generator().manual_seed(1))
    held = []
    for prefill in (1, 15, 16, 17, 31, 32, 33, 50):
        layer.reset()
        returned, _ = layer.update(keys[..., :prefill, :], values[..., :prefill, :])
        assert torch.equal(returned, keys[..., :prefill, :])  # a prompt attends to itself
        for step in range(prefill, 50):
            layer.update(keys[..., step : step + 1, :], values[..., step : step + 1, :])
        assert layer.get_seq_length() == 50
        held.append((layer.keys, layer.values))
    for found in held:
        assert torch.equal(found[0], held[0][0])
        assert torch.equal(found[1], held[0][1])
    stored_keys = (held[0][0] != keys).any(-1).flatten(0, 1).any(0)
    stored_values = (held[0][1] != values).any(-1).flatten(0, 1).any(0)
    assert stored_keys.tolist() == [True] * 48 + [False] * 2
    assert stored_values.tolist() == [True] * 34 + [False] * 16


def test_beams_carry_their_cache(tiny_of: Callable) -> None:
    loaded = compressed(tiny_of("llama"), FINE, FINE)
    found = loaded.model.generate(
        TOKENS[:, :1], max_new_tokens=20, num_beams=3, do_sample=False, eos_token_id=None
    )
    assert found.shape == (2, 21)


def test_what_cannot_hold_the_cache_is_refused(tiny_of: Callable) -> None:
    loaded = compressed(tiny_of("llama"), FINE, FINE)
    model = loaded.model
    with pytest.raises(UnsupportedError, match="StaticCache"):
        model(TOKENS, past_key_values=StaticCache(model.config, max_cache_len=64))
    set_cache_spec(model.model.layers[0].self_attn, None)
    cache = model(TOKENS, use_cache=True).past_key_values
    set_cache_spec(model.model.layers[0].self_attn, FINE.cache)
    with pytest.raises(UnsupportedError, match="37 tokens in full"):
        model(TOKENS, past_key_values=cache)
    cache = model(TOKENS, use_cache=True).past_key_values
    cache.crop(0)
    with pytest.raises(UnsupportedError, match="takes tokens back"):
        cache.crop(-1)
    with pytest.raises(UnsupportedError, match="takes tokens back"):
        cache.activate_past_recording()


def test_a_cache_may_be_given_by_position_and_without_a_config(tiny_of: Callable) -> None:
    loaded = compressed(tiny_of("gpt2"), FINE, FINE)
    cache = DynamicCache()
    loaded.model(TOKENS, cache)
    assert all(isinstance(layer, CompressedLayer) for layer in cache.layers)
    assert cache.get_seq_length() == 37


def test_a_candidate_takes_on_and_drops_specs(tiny_of: Callable) -> None:
    loaded = tiny_of("llama")
    names = [site.name for site in loaded.sketch.caches()]
    candidate = Candidate(loaded.model, loaded.sketch)
    candidate.apply(Plan({}), lambda *_: pytest.fail("nothing to fetch"))
    plan = Plan({names[0]: FINE, names[1]: COARSE})
    assert candidate.apply(plan, lambda *_: pytest.fail("nothing to fetch")) == 2
    assert candidate.apply(plan, lambda *_: pytest.fail("nothing to fetch")) == 0
    assert candidate.apply(Plan({names[1]: COARSE}), lambda *_: pytest.fail("fetch")) == 1
    assert [cache_spec(module) for module in compressing(loaded.model)] == [COARSE.cache]
    candidate.restore()
    assert not compressing(loaded.model)


def test_a_native_folder_keeps_its_caches(tiny_of: Callable, tmp_path: Path) -> None:
    loaded = tiny_of("qwen2")
    names = [site.name for site in loaded.sketch.caches()]
    plan = Plan({names[0]: FINE})
    write_native(
        tmp_path / "native",
        plan=plan,
        sketch=loaded.sketch,
        weights=compress_plan(loaded.model, loaded.sketch, plan),
        model=loaded.model,
    )
    candidate = Candidate(loaded.model, loaded.sketch)
    candidate.apply(plan, lambda *_: pytest.fail("nothing to fetch"))
    model = autocomp.load(tmp_path / "native", dtype=torch.float32)
    assert [cache_spec(module) for module in compressing(model)] == [FINE.cache]
    with decode_attention(model), torch.no_grad():
        found = model(TOKENS, use_cache=False).logits
    assert torch.equal(found, evaluated(loaded, TOKENS))
    cache = model(TOKENS, use_cache=True).past_key_values
    assert isinstance(cache.layers[0], CompressedLayer)
