"""Rounding of the regular inputs of a linear; outlying ones stay as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.formats.steps import Step
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.int8_outlier_matmul import split_outliers


@dataclass(frozen=True, slots=True)
class RoundRegular(Step):
    """``x̂ = x`` where ``|x| ≥ τ``, else ``t · round(x / t)``, ``t = absmax of those / 127``.

    What is outlying, and t, are each token's own. Nothing is stored.

    Args:
        threshold: τ, positive; in units of the input.
    """

    name: ClassVar[str] = "round-regular"

    threshold: float

    def __post_init__(self) -> None:
        """Check the threshold.

        Raises:
            PlanError: If it is not positive.
        """
        if not self.threshold > 0:
            raise PlanError(f"a threshold of outliers is positive, got {self.threshold}.")

    def apply(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the rounded input, with the gradient of the identity."""
        values = inputs.detach()
        outlying, codes, step = split_outliers(values, self.threshold)
        rounded = torch.where(outlying, values, (codes * step).to(inputs.dtype))
        return straight_through(inputs, rounded)
