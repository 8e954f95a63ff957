"""Predicted KL of doing one thing to one site, in nats a token.

With ``D = Ŵ − W``, input second moment ``H``, and Fisher matrix ``G`` of the output gradients:

* Kronecker score of a linear: ``½ tr(Dᵀ G D H)``;
* per-token score of a linear: ``½ E[(gᵀ D x)²]`` on a sample, which needs no independence of ``x``
and ``g``; * drop score of a sub-block with output ``y``: ``½ E[(gᵀ y)²]``; * embedding: ``½ Σ_v
f_v d_vᵀ G_e d_v`` with token frequencies ``f``; * head: the exact KL on a sample of its inputs
(its ``G`` would be vocabulary²).

All are second order around the dense model, so they are too small for coarse options; the search
corrects them by what it measures (:mod:`autocomp.search.correction`).

Reference: Martens and Grosse 2015, https://arxiv.org/abs/1503.05671 (the Kronecker form of a
Fisher block).
"""

import torch
from torch import Tensor

from autocomp.calibrate.stream import EndStatistics
from autocomp.core.stats import Stats

HEAD_TOKENS = 512
CHUNK_TOKENS = 256


@torch.no_grad()
def kronecker_score(difference: Tensor, stats: Stats) -> float:
    """Return ``½ tr(Dᵀ G D H)``.

    Args:
        difference: (out, in) fp32, ``Ŵ − W``.
        stats: With ``hessian`` (in, in) and ``fisher`` (out, out).
    """
    if stats.hessian is None or stats.fisher is None:
        raise ValueError("the Kronecker score needs H and G; calibrate with gradients first.")
    weighted = stats.fisher @ difference @ stats.hessian
    return 0.5 * (difference * weighted).sum(dtype=torch.float64).item()


@torch.no_grad()
def token_score(difference: Tensor, stats: Stats) -> float:
    """Return ``½ E[(gᵀ D x)²]`` over the sampled tokens.

    Args:
        difference: (out, in) fp32.
        stats: With ``sample`` (n, in) and ``sample_gradient`` (n, out) of the same tokens.
    """
    if stats.sample is None or stats.sample_gradient is None:
        raise ValueError("the per-token score needs samples; calibrate with sample_tokens > 0.")
    change = (stats.sample @ difference.T * stats.sample_gradient).sum(dim=1)
    return 0.5 * change.square().mean(dtype=torch.float64).item()


@torch.no_grad()
def embedding_score(difference: Tensor, end: EndStatistics) -> float:
    """Return ``½ Σ_v f_v d_vᵀ G_e d_v`` of an embedding change (vocab, hidden)."""
    seen = end.frequency.nonzero().squeeze(1)
    rows = difference[seen]
    values = (rows @ end.embedding_fisher * rows).sum(dim=1)
    return 0.5 * (end.frequency[seen] * values).sum(dtype=torch.float64).item()


@torch.no_grad()
def head_score(weight: Tensor, compressed: Tensor, end: EndStatistics) -> float:
    """Return the exact KL of replacing the head's weight (vocab, hidden), on sampled inputs."""
    total, count = 0.0, 0
    for hidden in end.hidden[:HEAD_TOKENS].split(CHUNK_TOKENS):
        log_p = torch.log_softmax(hidden @ weight.T, dim=-1)
        log_q = torch.log_softmax(hidden @ compressed.T, dim=-1)
        total += (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64).item()
        count += len(hidden)
    return total / count


LINEAR_SCORES = {"kronecker": kronecker_score, "token": token_score}
