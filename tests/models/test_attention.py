"""Evaluation as decoding against decoding itself, one query, one group and one head at a time."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autocomp.core.errors import UnsupportedError
from autocomp.core.spec import LayerSpec
from autocomp.models import attention as module_under_test
from autocomp.models import load
from autocomp.models.attention import DECODE, decode_attention, set_cache_spec

HEADS, KV_HEADS, WIDTH = 4, 2, 8
SPEC = LayerSpec.parse("kivi-k2v4g4r8").cache
ATTEND = ALL_ATTENTION_FUNCTIONS[DECODE]


class Attention(nn.Module):
    num_key_value_groups = HEADS // KV_HEADS
    is_causal = True


@pytest.fixture
def attention() -> Attention:
    module = Attention()
    set_cache_spec(module, SPEC)
    return module


def tensors(length: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return tuple(
        torch.randn(batch, heads, length, WIDTH, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )


def rounded(group: Tensor, bits: int) -> Tensor:
    """One group on its grid, with scale and minimum in float16."""
    low = group.min().half().double()
    scale = ((group.max() - low) / (2**bits - 1)).half().double()
    return ((group - low) / scale).round().clamp(0, 2**bits - 1) * scale + low


def decoded(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """One sequence and one head, token by token, with residuals that are flushed as they fill."""
    stored_keys: list[Tensor] = []
    stored_values: list[Tensor] = []
    residual_keys: list[Tensor] = []
    residual_values: list[Tensor] = []
    outputs = []
    for step in range(len(query)):
        residual_keys.append(key[step])
        residual_values.append(value[step])
        keys = torch.stack(stored_keys + residual_keys)
        values = torch.stack(stored_values + residual_values)
        logits = keys @ query[step] / WIDTH**0.5
        weights = logits.masked_fill(~visible[step, : step + 1], -torch.inf).softmax(0)
        outputs.append(weights @ values)
        if len(residual_keys) == 8:
            block = torch.stack(residual_keys)
            for start in (0, 4):
                group = block[start : start + 4]
                columns = [rounded(group[:, channel], 2) for channel in range(WIDTH)]
                stored_keys.extend(torch.stack(columns, 1))
            residual_keys.clear()
        if len(residual_values) == 9:
            oldest = residual_values.pop(0)
            stored_values.append(torch.cat([rounded(oldest[:4], 4), rounded(oldest[4:], 4)]))
    return torch.stack(outputs)


def all_decoded(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """(batch, tokens, heads, width), as attention functions return it."""
    return torch.stack(
        [
            torch.stack(
                [
                    decoded(query[b, h], key[b, h // 2], value[b, h // 2], visible[b])
                    for h in range(HEADS)
                ],
                1,
            )
            for b in range(len(query))
        ]
    )


@pytest.mark.parametrize("chunk", [5, 16, 256])
@pytest.mark.parametrize("length", [8, 9, 16, 17, 43])
def test_equals_decoding(attention, length, chunk, monkeypatch):
    monkeypatch.setattr(module_under_test, "CHUNK_TOKENS", chunk)
    inputs = tensors(length)
    expected = all_decoded(*inputs, torch.ones(2, length, length, dtype=torch.bool))
    found, weights = ATTEND(attention, *inputs, None, scaling=WIDTH**-0.5)
    assert weights is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_mask_is_respected(attention):
    """A sliding window of 11, and a sequence whose first five tokens are padding."""
    inputs = tensors(43)
    position = torch.arange(43)
    visible = (position[:, None] - position < 11) & (position <= position[:, None])
    visible = visible.repeat(2, 1, 1)
    visible[1, 5:, :5] = False
    expected = all_decoded(*inputs, visible)
    found, _ = ATTEND(attention, *inputs, visible[:, None], scaling=WIDTH**-0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_mask_of_padding_alone_gives_finite_outputs(attention):
    inputs = tensors(30)
    visible = torch.ones(2, 1, 30, 30, dtype=torch.bool).tril()
    visible[0, :, :, :20] = False
    found, _ = ATTEND(attention, *inputs, visible, scaling=WIDTH**-0.5)
    assert found.isfinite().all()


def same_as_sdpa(attention: Attention, length: int) -> bool:
    inputs = tensors(length)
    found, _ = ATTEND(attention, *inputs, None, scaling=WIDTH**-0.5)
    plain, _ = sdpa_attention_forward(attention, *inputs, None, scaling=WIDTH**-0.5)
    return torch.equal(found, plain)


def test_nothing_changes_before_something_is_stored(attention):
    assert same_as_sdpa(attention, 7)
    assert same_as_sdpa(attention, 8)
    assert not same_as_sdpa(attention, 9)


def test_attentions_without_a_spec_are_left_alone(attention):
    set_cache_spec(attention, None)
    assert same_as_sdpa(attention, 43)


def test_gradients_pass_through_what_is_stored(attention):
    query, key, value = (tensor.requires_grad_() for tensor in tensors(20))
    found, _ = ATTEND(attention, query, key, value, None, scaling=WIDTH**-0.5)
    found.sum().backward()
    # weights sum to one, so each query hands one unit down to the values, stored or not
    total = value.grad.sum(dim=2)
    torch.testing.assert_close(total, torch.full_like(total, 20.0 * HEADS / KV_HEADS))
    assert key.grad[:, :, 0].abs().max() > 0


def test_what_is_no_pass_over_whole_sequences_is_refused(attention):
    query, key, value = tensors(20)
    with pytest.raises(UnsupportedError, match="19 queries meet 20 keys"):
        ATTEND(attention, query[:, :, 1:], key, value, None)
    with pytest.raises(UnsupportedError, match="float"):
        ATTEND(attention, query, key, value, torch.zeros(2, 1, 20, 20, dtype=torch.float64))


def test_the_model_gets_its_attention_back(tiny_llama_path: Path):
    model = load(str(tiny_llama_path)).model
    first = model.model.layers[0].self_attn
    before = model.config._attn_implementation
    with decode_attention(model):
        assert model.config._attn_implementation == before
    set_cache_spec(first, SPEC)

    def fail() -> None:
        with decode_attention(model), decode_attention(model):
            assert model.config._attn_implementation == DECODE
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.config._attn_implementation == before


def test_other_attentions_are_refused(tiny_llama_path: Path):
    model = load(str(tiny_llama_path)).model
    model.set_attn_implementation("eager")
    set_cache_spec(model.model.layers[0].self_attn, SPEC)
    with pytest.raises(UnsupportedError, match="eager"), decode_attention(model):
        pass
