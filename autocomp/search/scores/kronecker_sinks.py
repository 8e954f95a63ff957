"""Kronecker score with the attention sinks counted apart, nats a token.

A sink holds most of ``H`` while its own gradient is small, so that the product of the two moments
charges it with the gradients of all other tokens. Here the moments are those of the other tokens,
a share ``1 − m / T`` of all T, and each of the m sinks counts with what it is:

* Weight: ``(1 − m/T) · ½ tr(Dᵀ G' D H') + 1/T · Σ_sinks ½ (gᵀ D x)²``, D (out, in).
* Rounded input: the same with ``½ E'[Δᵀ G' Δ]`` over the sampled others, and ``½ (gᵀ Δ)²`` of
  each sink, Δ (out,).
* Bypass and cache: ``½ E[(gᵀ Δ)²]`` over all tokens, which assumes nothing of sinks; embedding and
  head as for every Fisher score.

Which tokens are sinks is said by :func:`autocomp.calibrate.sinks.sink_masks`.

Reference: Sun et al. 2024, https://arxiv.org/abs/2402.17762 (massive activations); Martens and
Grosse 2015, https://arxiv.org/abs/1503.05671 (the Kronecker form).
"""

from typing import ClassVar

import torch
from torch import Tensor

from autocomp.formats.base import CompressedWeight
from autocomp.search.scores.base import (
    FisherScore,
    LinearSite,
    ScoreNeeds,
    kronecker_form,
    token_form,
)


class KroneckerSinks(FisherScore):
    """``½ tr(Dᵀ G D H)`` of all tokens but the sinks, and ``½ (gᵀ D x)²`` of each sink."""

    summary: ClassVar[str] = "½ tr(Dᵀ G D H) without the attention sinks, and ½ (gᵀ D x)² of each"
    reference: ClassVar[str] = "https://arxiv.org/abs/2402.17762"
    needs: ClassVar[frozenset[ScoreNeeds]] = frozenset({ScoreNeeds.SINKS})

    def pairs(self, site: LinearSite, changes: Tensor) -> Tensor:
        """Return the bilinear form whose diagonal is the score."""
        apart = site.apart
        others = kronecker_form(site, changes, apart.hessian, apart.fisher)
        sinks = token_form(site, changes, apart.inputs, apart.gradients)
        return apart.others * others + sinks / apart.tokens

    def rounded(self, site: LinearSite, compressed: CompressedWeight) -> float:
        """Return the mean over sampled others and all sinks, each with its share."""
        apart = site.apart
        change = site.output_change(compressed, site.sample[~apart.sampled])
        values = (site.product(change, apart.fisher) * change).sum(dim=1)
        others = 0.5 * values.sum(dtype=torch.float64).item() / max(1, len(values))
        change = site.output_change(compressed, apart.inputs)
        sinks = self.per_token(change, apart.gradients, None).sum(dtype=torch.float64).item()
        return apart.others * others + sinks / apart.tokens
