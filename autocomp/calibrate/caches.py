"""Predicted KL of storing the keys and values of one attention in few bits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocomp.calibrate.collect import PerToken, half_squared_product
from autocomp.calibrate.walker import Batch, BlockWalker
from autocomp.core.spec import LayerSpec
from autocomp.models.attention import cache_spec, decode_attention, set_cache_spec


@torch.no_grad()
def cache_scores(
    walker: BlockWalker,
    block: int,
    name: str,
    batches: Sequence[Batch],
    gradients: Sequence[Tensor],
    specs: Sequence[LayerSpec],
    per_token: PerToken = half_squared_product,
    sinks: Sequence[Tensor] | None = None,
) -> dict[str, float]:
    """Return the score of each spec: a drop score with ``Δy`` for ``−y``, ``½ E[(gᵀ Δy)²]``.

    ``Δy`` is how what the attention adds changes when every token reads the cache as decoding with
    it would. The first tokens of a window read nothing that is stored, so the mean grows with the
    window, as the measured KL does.

    Args:
        walker: Holds the dense model.
        block: Index of a block.
        name: Name of its attention.
        batches: Inputs of the block.
        gradients: Loss gradients at what the attention adds to the residual stream,
            (tokens, hidden), of the first of these batches; the others are not read.
        specs: Layer specs with a cache slot, or dense.
        per_token: What a changed output is worth, averaged over tokens.
        sinks: Which tokens are sinks, (tokens,) bool a batch, where somebody looked.

    Returns:
        The score by token.
    """
    attention = walker.layout.get(name)
    kept = batches[: len(gradients)]
    masks = [None] * len(kept) if sinks is None else sinks[: len(kept)]
    calls = _calls(walker, block, attention, kept)
    exact = [_output(walker, name, call) for call in calls]
    before, scores = cache_spec(attention), {}
    for spec in specs:
        set_cache_spec(attention, spec.cache)
        try:
            with decode_attention(walker.model):
                pairs = zip(calls, exact, strict=True)
                changes = [_output(walker, name, call) - y for call, y in pairs]
        finally:
            set_cache_spec(attention, before)
        values = [per_token(*part) for part in zip(changes, gradients, masks, strict=True)]
        scores[spec.token()] = torch.cat(values).mean(dtype=torch.float64).item()
    return scores


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _calls(
    walker: BlockWalker, block: int, attention: nn.Module, batches: Sequence[Batch]
) -> list[Call]:
    """Return the arguments with which a block calls its attention, one call a batch."""
    calls: list[Call] = []
    handle = attention.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        for batch in batches:
            walker.run_block(block, batch)
    finally:
        handle.remove()
    return calls


def _output(walker: BlockWalker, name: str, call: Call) -> Tensor:
    """Return what an attention adds, (tokens, hidden) fp32: its output, or a norm's behind it."""
    args, kwargs = call
    attention, added = walker.layout.get(name), walker.outputs[name]
    output: Tensor = attention(*args, **kwargs)[0]
    return (output if added is attention else added(output)).flatten(0, -2).float()
