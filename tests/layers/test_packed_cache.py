"""A cache that stays in few bits: the same logits as decoded, in the bytes that are due."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.kernels import _triton
from autocomp.kernels.kv_attention import kv_attention
from autocomp.layers import cache as module
from autocomp.layers.cache import install_generation_cache, set_cache_specs
from autocomp.layers.cache_layers import CompressedLayer, PackedLayer, packs
from autocomp.methods.kv_cache.kivi import Kivi
from autocomp.models import LoadedModel
from autocomp.models.attention import decode_attention

FINE = LayerSpec.parse("kivi-k4v2g4r8")
COARSE = LayerSpec.parse("kivi-k2v8g8r16")
TOKENS = torch.randint(3, 260, (2, 23), generator=torch.Generator().manual_seed(0))
PROMPT = 14
needs_triton = pytest.mark.skipif(not _triton.INTERPRETED, reason="triton is not interpreted")


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack although the reference has to attend."""
    monkeypatch.setattr(module, "packs", lambda model, spec: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the back-ends that attended."""
    found: list[str] = []
    choose = type(kv_attention).choose

    def noted(operation: object, *args: object, **kwargs: object) -> object:
        known = choose(operation, *args, **kwargs)
        if operation is kv_attention:
            found.append(known.name)
        return known

    monkeypatch.setattr(type(kv_attention), "choose", noted)
    return found


def compressed(loaded: LoadedModel) -> LoadedModel:
    """The model with the caches of its two blocks in few bits."""
    names = [site.name for site in loaded.sketch.caches()]
    specs = dict(zip(names, (FINE, COARSE), strict=True))
    set_cache_specs(loaded.model, loaded.sketch, Plan(specs))
    install_generation_cache(loaded.model)
    return loaded


@torch.no_grad()
def decoded(
    loaded: LoadedModel, mask: Tensor | None = None, prompt: int = PROMPT
) -> tuple[Tensor, type]:
    """Logits of a prompt at once, then of one token at a time; and the class of the layers."""
    options = {} if mask is None else {"attention_mask": mask[:, :prompt]}
    found = loaded.model(TOKENS[:, :prompt], use_cache=True, **options)
    logits, cache = [found.logits], found.past_key_values
    for step in range(prompt, TOKENS.shape[1]):
        options = {} if mask is None else {"attention_mask": mask[:, : step + 1]}
        token = TOKENS[:, step : step + 1]
        logits.append(loaded.model(token, past_key_values=cache, use_cache=True, **options).logits)
    (kind,) = {type(layer) for layer in cache.layers}
    return torch.cat(logits, dim=1), kind


def test_on_a_processor_stored_tokens_stay_decoded(tiny_of: Callable, calls: list[str]) -> None:
    loaded = compressed(tiny_of("llama"))
    _, kind = decoded(loaded)
    assert kind is CompressedLayer
    assert not calls
    assert "triton" in str(packs(loaded.model, FINE.cache))
    assert "whole bytes" in str(packs(loaded.model, LayerSpec.parse("kivi-k2v2g1r1").cache))


def test_the_logits_are_those_of_decoded_tokens(
    tiny_of: Callable, forced: None, calls: list[str]
) -> None:
    expected, loaded = compressed(tiny_of("llama")), compressed(tiny_of("llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "packs", lambda *_: "not now")
        wanted, kind = decoded(expected)
    assert kind is CompressedLayer
    found, kind = decoded(loaded)
    assert kind is PackedLayer
    assert calls == ["reference"] * 2 * (TOKENS.shape[1] - PROMPT)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    with decode_attention(loaded.model), torch.no_grad():  # an evaluation runs as before
        evaluated = loaded.model(TOKENS, use_cache=False).logits
    with decode_attention(expected.model), torch.no_grad():
        assert torch.equal(evaluated, expected.model(TOKENS, use_cache=False).logits)


@needs_triton
def test_where_a_kernel_runs_tokens_stay_packed(tiny_of: Callable, calls: list[str]) -> None:
    prompt = TOKENS.shape[1] - 2
    wanted, _ = decoded(compressed(tiny_of("llama")), prompt=prompt)
    loaded = compressed(tiny_of("llama"))
    with _triton.interpreting():
        assert packs(loaded.model, FINE.cache) is None
        calls.clear()
        found, kind = decoded(loaded, prompt=prompt)
    assert kind is PackedLayer
    assert calls == ["triton"] * 4
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_padding_is_masked(tiny_of: Callable, forced: None, calls: list[str]) -> None:
    mask = torch.ones_like(TOKENS)
    mask[1, :5] = 0
    found, _ = decoded(compressed(tiny_of("llama")), mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "packs", lambda *_: "not now")
        wanted, _ = decoded(compressed(tiny_of("llama")), mask)
    assert not calls
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1, 5:], wanted[1, 5:], rtol=0, atol=1e-4)


def test_beams_and_a_second_generation(tiny_of: Callable, forced: None) -> None:
    def generated() -> list[Tensor]:
        model = compressed(tiny_of("llama")).model
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        return [model.generate(TOKENS[:, :9], num_beams=beams, **options) for beams in (3, 1)]

    found = generated()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "packs", lambda *_: "not now")
        assert all(map(torch.equal, found, generated()))


@pytest.mark.parametrize("spec", [FINE.cache, COARSE.cache], ids=lambda spec: spec.token())
def test_a_layer_holds_the_same_in_the_bytes_of_the_method(spec: object) -> None:
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 3, 2, 50, 16, generator=generator).half()
    packed, plain = PackedLayer(spec), CompressedLayer(spec)
    start = 0
    for stop in (1, 15, 16, 17, 33, 34, 50):
        for layer in (packed, plain):
            layer.update(keys[..., start:stop, :], values[..., start:stop, :])
        start = stop
        assert packed.get_seq_length() == stop
        assert torch.equal(packed.dense()[0], plain.keys)
        assert torch.equal(packed.dense()[1], plain.values)
        assert packed.nbytes == 3 * Kivi().nbytes(spec, (2, 16), stop, "float16")
    for layer in (packed, plain):
        layer.batch_repeat_interleave(2)
        layer.reorder_cache(torch.tensor([0, 4, 4, 2]))
        layer.batch_select_indices(torch.tensor([1, 3]))
    packed.offload()
    packed.prefetch()
    assert torch.equal(packed.dense()[0], plain.keys)
    assert torch.equal(packed.dense()[1], plain.values)
    packed.reset()
    assert packed.get_seq_length() == 0
