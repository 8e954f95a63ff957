"""Kronecker-factored Fisher score, nats a token.

* Weight: ``½ tr(Dᵀ G D H)``, D (out, in), G (out, out), H (in, in): the second-order KL when
  inputs and output gradients are independent.
* Rounded input: ``½ E[Δᵀ G Δ]`` on the sampled tokens, Δ (out,).
* Bypass and cache: ``½ E[(gᵀ Δ)²]``; embedding and head as for every Fisher score.

Reference: Martens and Grosse 2015, https://arxiv.org/abs/1503.05671
"""

from typing import ClassVar

import torch

from autocomp.formats.base import CompressedWeight
from autocomp.search.scores.base import FisherScore, LinearSite


class Kronecker(FisherScore):
    """``½ tr(Dᵀ G D H)``: Fisher information as a Kronecker product."""

    summary: ClassVar[str] = "½ tr(Dᵀ G D H), the Fisher information as a Kronecker product"
    reference: ClassVar[str] = "https://arxiv.org/abs/1503.05671"

    def rounded(self, site: LinearSite, compressed: CompressedWeight) -> float:
        """Return ``½ E[Δᵀ G Δ]`` over the sampled tokens."""
        change = site.output_change(compressed, site.sample)
        values = (site.product(change, site.fisher) * change).sum(dim=1)
        return 0.5 * values.mean(dtype=torch.float64).item()
