"""Gradient times difference: first order, in nats that do not cancel.

``E[Σ_i |g_i Δ_i|]`` over tokens, Δ and g (out,). AutoScheme multiplies gradient and difference at
the inputs or at the weights of a quantized layer, element by element, and adds up magnitudes. Here
both are taken at the output, where every kind of option has a difference, and the gradient is that
of the dense model with labels drawn from itself, of which the signed sum would be zero on average.
The magnitudes make it a bound, not a prediction.

* Weight: ``Δ = D x``, on the sampled tokens, as for rounded inputs; bypass and cache over tokens.
* Embedding: Δ is the change of a token's row, on the sampled tokens.
* Head: ``E[Σ_v 2 p_v (1 − p_v) |Δ_v|]``, since ``E|p_v − 1(v)| = 2 p_v (1 − p_v)`` for a label
  drawn from p.

Reference: Cheng et al. 2025, https://arxiv.org/abs/2512.04746 (AutoScheme's delta loss).
"""

from typing import ClassVar

from torch import Tensor

from autocomp.calibrate.stream import EndStatistics
from autocomp.search.scores.base import Score, ScoreNeeds, softmax_mean


class Gradient(Score):
    """``E[Σ |g_i Δ_i|]``: gradient times difference."""

    summary: ClassVar[str] = "E[Σ |g Δy|], gradient times difference, as AutoScheme counts"
    reference: ClassVar[str] = "https://arxiv.org/abs/2512.04746"
    in_nats: ClassVar[bool] = False
    needs: ClassVar[frozenset[ScoreNeeds]] = frozenset({ScoreNeeds.GRADIENTS})

    def per_token(self, change: Tensor, gradient: Tensor, sinks: Tensor | None) -> Tensor:
        """Return ``Σ_i |g_i Δ_i|``."""
        return (change * gradient).abs().sum(dim=1)

    def head(self, weight: Tensor, compressed: Tensor, end: EndStatistics) -> float:
        """Return ``E[Σ_v 2 p_v (1 − p_v) |Δ_v|]``."""
        return softmax_mean(
            weight, compressed, end, lambda share, change: 2 * share * (1 - share) * change.abs()
        )
