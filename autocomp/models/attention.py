"""Attention over a compressed key/value cache, evaluated as decoding, for all tokens at once.

A cache method changes nothing in one forward pass over a text: the pass attends before anything
is stored. What it costs shows when tokens come one by one. For a query with ``t`` tokens before
it, the method says how many of those keys, ``a(t)``, and values, ``b(t)``, were stored when it
came; later ones and its own are as they were made. Each query here reads exactly that, out of
stored and exact copies of the keys and values, and one softmax runs over all of them. So the
hidden states are those of token-by-token decoding with that cache.

The cache that does this in ``generate`` is :mod:`autocomp.layers.cache`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from autocomp.core.errors import UnsupportedError
from autocomp.core.registry import METHODS
from autocomp.core.spec import Spec

DECODE = "autocomp_decode"
PACKED = "autocomp_packed"
"""Names of attentions: of an evaluation, and of generation with a packed cache, which otherwise
is PyTorch's fused one."""

CHUNK_TOKENS = 128

Attended = tuple[Tensor, None]


def set_cache_spec(attention: nn.Module, spec: Spec | None) -> None:
    """Say how an attention's keys and values are stored; ``None`` is as they are."""
    attention.cache_spec = spec  # type: ignore[assignment]


def cache_spec(attention: nn.Module) -> Any | None:
    """Return how an attention's keys and values are stored; ``None`` is as they are."""
    return getattr(attention, "cache_spec", None)


def compressing(model: nn.Module) -> list[nn.Module]:
    """Return the attentions of a model whose cache is compressed, in model order."""
    return [module for module in model.modules() if cache_spec(module) is not None]


@contextmanager
def decode_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let forward passes in the context see the compressed caches, as decoding would.

    Nothing changes when no attention has a cache spec, and attentions without one compute what
    they always do, bit for bit.

    Args:
        model: A decoder whose passes in the context use no cache.

    Raises:
        UnsupportedError: If the model does not attend through PyTorch's fused attention.
    """
    before = model.config._attn_implementation
    if before == DECODE or not compressing(model):
        yield
        return
    if before in ("sdpa", PACKED):
        model.set_attn_implementation(DECODE)
    if model.config._attn_implementation != DECODE:
        raise UnsupportedError(
            f"{type(model).__name__} attends through {before!r} and cannot be told otherwise; a "
            "compressed cache needs a model that transformers lets attend through 'sdpa'."
        )
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> Attended:
    """Attend as transformers calls it; query, key and value are (batch, heads, tokens, width)."""
    spec = cache_spec(module)
    if spec is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    _check(module, query, key, attention_mask)
    method, length = METHODS[spec.method](), key.shape[-2]
    counts = torch.tensor([method.stored(spec, before) for before in range(length)])
    if not counts.any():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    keys_stored, values_stored = counts[-1].tolist()
    keys = {True: _stored(method.keys, spec, key, keys_stored), False: key}
    values = {True: _stored(method.values, spec, value, values_stored), False: value}
    outputs = []
    for queries in torch.arange(length).split(CHUNK_TOKENS):
        pieces = list(_pieces(queries, counts[queries]))
        mask = torch.cat([seen for _, _, _, seen in pieces], dim=-1).to(query.device)
        if attention_mask is not None:
            given = attention_mask[..., queries.to(query.device), :]
            mask = mask & torch.cat([given[..., tokens] for _, _, tokens, _ in pieces], dim=-1)
        output, _ = sdpa_attention_forward(
            module,
            query[..., queries[0] : queries[-1] + 1, :],
            torch.cat([keys[stored][..., tokens, :] for stored, _, tokens, _ in pieces], dim=-2),
            torch.cat([values[stored][..., tokens, :] for _, stored, tokens, _ in pieces], dim=-2),
            mask.expand(len(query), 1, -1, -1),
            **options,
        )
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _check(module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None) -> None:
    """Refuse what is not one causal pass over whole sequences."""
    if query.shape[-2] != key.shape[-2]:
        raise UnsupportedError(
            f"{type(module).__name__}: {query.shape[-2]} queries meet {key.shape[-2]} keys; an "
            "evaluation reads whole sequences without a cache (use_cache=False)."
        )
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        raise UnsupportedError(
            f"{type(module).__name__}: a mask of {attention_mask.dtype} cannot be combined with a "
            "compressed cache; give a boolean one."
        )


def _stored(
    rounded: Callable[[Any, Tensor], Tensor], spec: Any, tensor: Tensor, count: int
) -> Tensor:
    """Return keys or values with the first ``count`` as stored; the gradient is the identity's."""
    exact = tensor[..., :count, :]
    through = exact - exact.detach()  # zero, with the gradient of ``exact``
    return torch.cat([rounded(spec, exact.detach()) + through, tensor[..., count:, :]], dim=-2)


def _pieces(queries: Tensor, counts: Tensor) -> Iterator[tuple[bool, bool, slice, Tensor]]:
    """Yield which tokens some queries read in which form.

    Args:
        queries: (n,) consecutive positions.
        counts: (n, 2) keys and values stored when each query came.

    Yields:
        Whether the keys and the values are stored ones, a range of tokens, and the mask
        (n, tokens) of what each query reads in that form.
    """
    position = torch.arange(int(queries[-1]) + 1)
    causal = position <= queries[:, None]
    key_stored, value_stored = (position < count[:, None] for count in counts.T)
    for form in product((True, False), repeat=2):
        seen = causal & (key_stored == form[0]) & (value_stored == form[1])
        columns = seen.any(dim=0).nonzero()
        if len(columns):
            tokens = slice(int(columns[0]), int(columns[-1]) + 1)
            yield *form, tokens, seen[:, tokens]


AttentionInterface.register(DECODE, _attend)
AttentionMaskInterface.register(DECODE, sdpa_mask)
