"""The two ends of a measurement: what reaches the head, and the matrix that makes logits of it."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from autocomp.models.attention import decode_attention

CHUNK_TOKENS = 256


def chunks(count: int) -> list[slice]:
    """Return slices over ``count`` tokens, so that logits of one slice exist at a time."""
    return [slice(start, start + CHUNK_TOKENS) for start in range(0, count, CHUNK_TOKENS)]


def head_weight(model: PreTrainedModel) -> Tensor:
    """Return the matrix that makes logits, fp32, packed modules decoded.

    (vocab, hidden); with a bias (vocab, hidden + 1).
    """
    head = model.get_output_embeddings()
    weight: Tensor = head.weight.detach().float()
    return weight if head.bias is None else torch.column_stack([weight, head.bias.float()])


def head_inputs(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return the head's inputs, (windows, length, hidden), after the final norm.

    Compressed key/value caches count as they would in decoding. A head with a bias gets one
    channel more, which is 1.
    """
    device = next(model.parameters()).device
    with decode_attention(model):
        output = model.base_model(input_ids=windows.to(device), use_cache=False)
    hidden: Tensor = output.last_hidden_state
    biased = model.get_output_embeddings().bias is not None
    return functional.pad(hidden, (0, 1), value=1.0) if biased else hidden


@torch.no_grad()
def final_hidden(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return :func:`head_inputs` without a graph."""
    return head_inputs(model, windows)


def normalise(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``logsumexp`` of every row and the index of its largest; the logits are overwritten.

    Args:
        logits: (tokens, vocab) fp32.

    Returns:
        (tokens,) fp32 and (tokens,) int64.
    """
    largest, best = logits.max(dim=-1)
    return logits.sub_(largest[:, None]).exp_().sum(dim=-1).log_().add_(largest), best
