"""Per-token Fisher score that leaves the attention sinks out, nats a token.

``½ E[(gᵀ Δ)² · 1(no sink)]`` over tokens, Δ and g (out,): what a sink would lose counts as
nothing, for every kind of option but embedding and head, which are as for every Fisher score.

Which tokens are sinks is said by :func:`autocomp.calibrate.sinks.sink_masks`.

Reference: Sun et al. 2024, https://arxiv.org/abs/2402.17762 (massive activations); Martens 2014,
https://arxiv.org/abs/1412.1193 (Fisher matrix and curvature of the KL).
"""

from typing import ClassVar

from torch import Tensor

from autocomp.search.scores.base import LinearSite, ScoreNeeds, token_form
from autocomp.search.scores.token import Token


class TokenNoSinks(Token):
    """``½ E[(gᵀ D x)²]`` over the tokens that are no attention sinks."""

    summary: ClassVar[str] = "½ E[(gᵀ D x)²] without the attention sinks"
    reference: ClassVar[str] = "https://arxiv.org/abs/2402.17762"
    needs: ClassVar[frozenset[ScoreNeeds]] = Token.needs | {ScoreNeeds.SINKS}

    def per_token(self, change: Tensor, gradient: Tensor, sinks: Tensor | None) -> Tensor:
        """Return ``½ (gᵀ Δ)²``, 0 for a sink."""
        values = super().per_token(change, gradient, sinks)
        return values if sinks is None else values.masked_fill(sinks, 0.0)

    def pairs(self, site: LinearSite, changes: Tensor) -> Tensor:
        """Return ``½ E[(gᵀ D_o x)(gᵀ D_p x) · 1(no sink)]``, whose diagonal is the score."""
        gradient = site.gradient.masked_fill(site.apart.sampled[:, None], 0.0)
        return token_form(site, changes, site.sample, gradient) / len(site.sample)
