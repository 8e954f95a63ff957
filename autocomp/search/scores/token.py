"""Per-token Fisher score, nats a token.

``½ E[(gᵀ Δ)²]`` over tokens, Δ and g (out,): the second-order KL whether or not inputs and output
gradients are independent.

* Weight: ``Δ = D x``, on the sampled tokens, as for rounded inputs.
* Bypass and cache: the same mean; embedding and head as for every Fisher score.

Reference: Martens 2014, https://arxiv.org/abs/1412.1193 (Fisher matrix and curvature of the KL).
"""

from typing import ClassVar

from torch import Tensor

from autocomp.search.scores.base import FisherScore, LinearSite, ScoreNeeds, token_form


class Token(FisherScore):
    """``½ E[(gᵀ D x)²]``: Fisher information token by token."""

    summary: ClassVar[str] = "½ E[(gᵀ D x)²], the Fisher information token by token"
    reference: ClassVar[str] = "https://arxiv.org/abs/1412.1193"
    needs: ClassVar[frozenset[ScoreNeeds]] = frozenset({ScoreNeeds.GRADIENTS})

    def pairs(self, site: LinearSite, changes: Tensor) -> Tensor:
        """Return ``½ E[(gᵀ D_o x)(gᵀ D_p x)]``, whose diagonal is the score."""
        return token_form(site, changes, site.sample, site.gradient) / len(site.sample)
