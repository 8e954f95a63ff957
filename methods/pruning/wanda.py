"""Wanda: prune by weight times input norm, row by row."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._masks import MaskMethod, wanda_score


@dataclass(frozen=True, slots=True)
class WandaSpec(MaskSpec):
    """Keep the largest ``|w|·‖x‖`` of each row: ``wanda-s50``, ``wanda-2:4``."""

    method: ClassVar[str] = "wanda"


class Wanda(MaskMethod):
    """Score ``|W_ij| · sqrt(E[x_j²])``: its square is the output error of dropping w alone.

    Exactly ``⌊in·s⌋`` weights of each row go, or ``m − keep`` of every ``m``; the others keep
    their values.

    Reference:
        Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models,
        https://arxiv.org/abs/2306.11695
    """

    spec: ClassVar[type[WandaSpec]] = WandaSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "keep the largest weight times input norm of each row"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.11695"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.NORMS})

    def score(self, weight: Tensor, spec: WandaSpec, stats: Stats | None) -> Tensor:
        """Return the score (out, in).

        Raises:
            PlanError: If the input norms (in,) are missing.
        """
        return wanda_score(weight, require(stats, "norms", "wanda", weight.shape[1]))
