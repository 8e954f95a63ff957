"""Predicted KL of doing one thing to one site, in nats a token.

With ``D = Ŵ − W``, input second moment ``H``, and Fisher matrix ``G`` of the output gradients:

* Kronecker score of a linear: ``½ tr(Dᵀ G D H)``;
* per-token score of a linear: ``½ E[(gᵀ D x)²]`` on a sample, which needs no independence of ``x``
  and ``g``;
* output score of a linear that rounds its input: ``½ E[Δyᵀ G Δy]`` on a sample;
* drop score of a sub-block with output ``y``: ``½ E[(gᵀ y)²]``;
* embedding: ``½ Σ_v f_v d_vᵀ G_e d_v`` with token frequencies ``f``;
* head: the exact KL on a sample of its inputs (its ``G`` would be vocabulary²).

All are second order around the dense model, so they are too small for coarse options; the search
corrects them by what it measures (:mod:`autocomp.search.correction`).

Reference: Martens and Grosse 2015, https://arxiv.org/abs/1503.05671 (the Kronecker form of a
Fisher block).
"""

import torch
from torch import Tensor
from torch.nn import functional

from autocomp.calibrate.stream import EndStatistics
from autocomp.core.stats import Stats
from autocomp.formats.base import Operands

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
def output_score(stats: Stats, weight: Tensor, operands: Operands) -> float:
    """Return ``½ E[Δyᵀ G Δy]`` over the sampled tokens, ``Δy = a(T x) Ŵ'ᵀ − x Wᵀ``.

    For options that round inputs, whose change no weight expresses.

    Args:
        stats: With ``sample`` (n, in) and ``fisher`` (out, out).
        weight: (out, in) fp32, the original.
        operands: What the linear computes with in its place.
    """
    if stats.sample is None or stats.fisher is None:
        raise ValueError("the output score needs samples and G; calibrate with gradients first.")
    inputs = stats.sample
    prepared = inputs if operands.prepare is None else operands.prepare(inputs)
    change = prepared @ operands.weight.T - inputs @ weight.T
    values = (change @ stats.fisher * change).sum(dim=1)
    return 0.5 * values.mean(dtype=torch.float64).item()


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
        log_p, log_q = (
            torch.log_softmax(functional.linear(hidden, matrix, end.head_bias), dim=-1)
            for matrix in (weight, compressed)
        )
        total += (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64).item()
        count += len(hidden)
    return total / count


LINEAR_SCORES = {"kronecker": kronecker_score, "token": token_score}
