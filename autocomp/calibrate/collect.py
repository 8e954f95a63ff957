"""What a calibration pass keeps for a score, beside what compression needs."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

PerToken = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Value of a changed output, a token: of the change (n, out), the loss gradient there (n, out) and
which of the tokens are sinks, (n,) bool or ``None`` where nobody looked; returns (n,) fp32."""


def half_squared_product(change: Tensor, gradient: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Return ``½ (gᵀ Δ)²``, the second-order KL of each token, nats.

    Args:
        change: Δ (n, out) fp32.
        gradient: g (n, out) fp32.
        sinks: Not looked at.
    """
    return 0.5 * (change * gradient).sum(dim=1).square()


@dataclass(frozen=True, slots=True)
class Collect:
    """What a pass keeps and computes for a score.

    Args:
        per_token: Value of bypassed sub-blocks and of compressed caches, averaged over tokens.
        gradients: Keep the output gradients of the sampled tokens.
        sensitivity: Keep the diagonal of the Fisher matrix of each weight.
        sinks: Find the attention sinks, and keep their statistics apart.
    """

    per_token: PerToken = half_squared_product
    gradients: bool = False
    sinks: bool = False
    sensitivity: bool = False
