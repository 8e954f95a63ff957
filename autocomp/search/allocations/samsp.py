"""SAMSP's allocation: matrices that the loss is more sensitive to keep more weights.

The sensitivity of a matrix is ``tr(H)/n``, with H the Hessian of the loss in its n weights. Ranked
by it, from 0 for the least, the share that stays rises evenly from ``target − α`` to
``target + α``, and all are moved by what makes the mean over weights the target. Equal
sensitivities share the mean of their ranks.

H is here the Fisher matrix, which equals the Hessian where the model's own distribution is the
true one. Its trace needs no second backward pass and no random directions: token by token it is
``E[‖g‖² ‖x‖²]``, g the loss gradient at the output with labels drawn from the model.

Reference: Shao et al. 2023, One-Shot Sensitivity-Aware Mixed Sparsity Pruning,
https://arxiv.org/abs/2310.09499
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scipy.stats import rankdata

from autocomp.core.errors import ConfigError
from autocomp.search.allocations.base import AllocatedSite, Allocation, centred

if TYPE_CHECKING:
    from autocomp.search.scores.base import LinearSite


@dataclass(frozen=True, slots=True)
class Samsp(Allocation):
    """Sparsity a matrix by the rank of its Hessian sensitivity.

    Token: ``samsp[-a<spread>]``.

    Args:
        spread: α; the matrices lie at most 2α apart.
    """

    name: ClassVar[str] = "samsp"
    slot: ClassVar[str] = "mask"
    summary: ClassVar[str] = "matrices with a larger Hessian trace a weight stay denser"
    reference: ClassVar[str] = "https://arxiv.org/abs/2310.09499"
    gradients: ClassVar[bool] = True
    letters: ClassVar[Mapping[str, str]] = {"a": "spread"}

    spread: float = 0.1

    def __post_init__(self) -> None:
        """Check the setting."""
        if not 0 <= self.spread < 0.5:
            raise ConfigError(f"samsp: the spread must lie in [0, 0.5), got {self.spread:g}.")

    def read(self, block: "Mapping[str, LinearSite]") -> dict[str, float]:
        """Return ``E[‖g‖² ‖x‖²]/n`` of every linear, over the sampled tokens."""
        return {
            name: (site.gradient.double().square().sum(1) * site.sample.double().square().sum(1))
            .mean()
            .item()
            / site.weight.numel()
            for name, site in block.items()
        }

    def profile(self, sites: Sequence[AllocatedSite], target: float) -> dict[str, float]:
        """Return the shares; see the module."""
        ranks = rankdata([site.signal for site in sites]) - 1
        return centred(2 * self.spread * ranks / max(len(sites) - 1, 1), sites, target)
