"""AutoQuantize of NVIDIA Model Optimizer: the diagonal of the Fisher matrix, token by token.

``E[Σ_i (g_i Δ_i)²]`` over tokens, Δ and g (out,), in squared nats of single outputs: twice the
second-order KL if the changes of two outputs never came together.

* Weight: ``Δ = D x``, on the sampled tokens, as for rounded inputs; bypass and cache over tokens.
* Embedding: Δ is the change of a token's row, on the sampled tokens.
* Head: ``E[Σ_v p_v (1 − p_v) Δ_v²]``, since ``E(p_v − 1(v))² = p_v (1 − p_v)`` for a label drawn
  from p.

Reference: NVIDIA 2024, https://github.com/NVIDIA/Model-Optimizer (``mtq.auto_quantize``).
"""

from typing import ClassVar

from torch import Tensor

from autocomp.calibrate.stream import EndStatistics
from autocomp.search.scores.base import Score, ScoreNeeds, softmax_mean


class AutoQuantize(Score):
    """``E[Σ (g_i Δ_i)²]``: Fisher information as a diagonal."""

    summary: ClassVar[str] = "E[Σ (g Δy)²], the diagonal of the Fisher matrix, as AutoQuantize"
    reference: ClassVar[str] = "https://github.com/NVIDIA/Model-Optimizer"
    in_nats: ClassVar[bool] = False
    needs: ClassVar[frozenset[ScoreNeeds]] = frozenset({ScoreNeeds.GRADIENTS})

    def per_token(self, change: Tensor, gradient: Tensor, sinks: Tensor | None) -> Tensor:
        """Return ``Σ_i (g_i Δ_i)²``."""
        return (change * gradient).square().sum(dim=1)

    def head(self, weight: Tensor, compressed: Tensor, end: EndStatistics) -> float:
        """Return ``E[Σ_v p_v (1 − p_v) Δ_v²]``."""
        return softmax_mean(
            weight, compressed, end, lambda share, change: share * (1 - share) * change.square()
        )
