"""SmoothQuant: share the outliers of the input between input and weight, so that both round."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import Reader
from autocomp.core.spec import InputSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._steps import ScaleMethod

SMALLEST_WEIGHT = 1e-5


@dataclass(frozen=True, slots=True)
class SmoothQuantSpec(InputSpec):
    """Move outliers into the weight: ``smoothquant``, ``smoothquant-a85``.

    Token: ``smoothquant[-a<percent>][-folded]``.

    Args:
        alpha_percent: Migration strength α in percent: 0 leaves the outliers of the weight to the
            input, 100 those of the input to the weight; 50, which is not written, evens them.
    """

    method: ClassVar[str] = "smoothquant"

    alpha_percent: int = 50

    def __post_init__(self) -> None:
        """Check the strength."""
        if not 0 <= self.alpha_percent <= 100:
            raise PlanError(
                f"smoothquant: α must lie in 0..100 percent, got {self.alpha_percent}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        alpha = "" if self.alpha_percent == 50 else f"-a{self.alpha_percent}"
        return f"smoothquant{alpha}{'-folded' if self.folded else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(r"smoothquant(?:-a(\d+))?(-folded)?", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected smoothquant[-a<α in percent>][-folded], such as "
                "smoothquant-a85."
            )
        return cls(folded=bool(found[2]), alpha_percent=int(found[1] or 50))


class SmoothQuant(ScaleMethod):
    """``s_j = max(absmax_j^α / w_j^(1−α), 1e-5)``, ``w_j`` the largest ``|W_ij|`` of the readers.

    ``x / s`` is rounded instead of x and ``W · s`` instead of W, (out, in); ``w_j`` is at least
    1e-5. With α = ½ both have the largest magnitude ``√(absmax_j w_j)`` in every channel. It pays
    with rounded inputs: ``smoothquant+rtn-w8-sym+absmax-a8``.

    Reference:
        Xiao et al. 2022, SmoothQuant, https://arxiv.org/abs/2211.10438
    """

    spec: ClassVar[type[SmoothQuantSpec]] = SmoothQuantSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "move outliers of the input into the weight"
    reference: ClassVar[str] = "https://arxiv.org/abs/2211.10438"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.ABSMAX})

    def scale(
        self, readers: Sequence[Reader], spec: SmoothQuantSpec, stats: Stats | None
    ) -> Tensor:
        """Return s (in,) fp32.

        Raises:
            PlanError: If the largest magnitudes of the input are missing.
        """
        columns = torch.stack([reader.weight.abs().amax(dim=0) for reader in readers])
        largest = columns.amax(dim=0).clamp_min(SMALLEST_WEIGHT)
        absmax = require(stats, "absmax", "smoothquant", len(largest))
        alpha = spec.alpha_percent / 100
        return absmax**alpha / largest ** (1 - alpha)
