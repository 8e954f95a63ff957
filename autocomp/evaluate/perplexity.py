"""Cross entropy of a text, a window at a time; perplexity is ``exp`` of the mean over windows."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from autocomp.evaluate.head import chunks, final_hidden, head_weight
from autocomp.models.device import bf16_products


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> tuple[float, ...]:
    """Return what a perplexity is made of: the mean cross entropy of each window, nats a token.

    ``ppl = exp(1/n Σ_i 1/(L−1) Σ_t −log q(x_t | x_<t))`` over n windows of L tokens, of which all
    but the first are predicted. Logits exist for one chunk of tokens at a time; the loss is fp32,
    summed in fp64.

    Args:
        model: Any causal LM, packed weights and compressed caches included.
        windows: (n, length) int64 token ids.
        batch_size: Windows a forward pass.
        advance: Told how many tokens were read.

    Returns:
        One value a window, in their order.

    Reference: Frantar et al. 2022, https://arxiv.org/abs/2210.17323.
    """
    head = head_weight(model)
    nll: list[float] = []
    for batch in windows.split(batch_size):
        hidden = final_hidden(model, batch)[:, :-1]
        inputs = hidden.flatten(0, 1).float()
        labels = batch[:, 1:].flatten().to(hidden.device)
        with bf16_products(hidden.dtype):
            losses = [
                functional.cross_entropy(inputs[piece] @ head.T, labels[piece], reduction="none")
                for piece in chunks(len(inputs))
            ]
        nll += torch.cat(losses).view(len(batch), -1).double().mean(dim=1).tolist()
        if advance is not None:
            advance(batch.numel())
    return tuple(nll)
