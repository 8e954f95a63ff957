"""Calibration statistics of one site, the only data a method sees."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Needs(Enum):
    """What a method asks of calibration."""

    NORMS = "norms"
    MEAN = "mean"
    ABSMEAN = "absmean"
    ABSMAX = "absmax"
    HESSIAN = "hessian"
    FISHER = "fisher"
    SAMPLE = "sample"
    SENSITIVITY = "sensitivity"


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of the inputs (and output gradients) of a site, all fp32.

    Args:
        tokens: Number of tokens seen.
        hessian: (in, in), ``H = E[x xᵀ]``, mean over tokens.
        norms: (in,), ``sqrt(E[x²])`` a channel.
        mean: (in,), ``E[x]`` a channel; the variance is ``norms² − mean²``.
        absmean: (in,), ``E[|x|]`` a channel.
        absmax: (in,), largest ``|x|`` a channel.
        fisher: (out, out), ``G = E[g gᵀ]``, ``g`` the gradient of the summed loss at the output.
        sample: (n, in), some input rows.
        sample_gradient: (n, out), the output gradients ``g`` of the same tokens.
        sensitivity: (out, in), ``E[(g_i x_j)²]``, the diagonal of the Fisher matrix of the weight.
        drift: (in, in), ``D = E[(x − x̂) x̂ᵀ]``, when ``x̂`` are the inputs of the others and ``x``
            those of the same tokens in the dense model.
        digest: Identifies the text, model and plan behind the statistics; part of store keys.
        derived: Factorisations that methods computed from these statistics, kept to be shared
            by the specs and the sites that read the same input.
    """

    tokens: int = 0
    hessian: "Tensor | None" = None
    norms: "Tensor | None" = None
    mean: "Tensor | None" = None
    absmean: "Tensor | None" = None
    absmax: "Tensor | None" = None
    fisher: "Tensor | None" = None
    sample: "Tensor | None" = None
    sample_gradient: "Tensor | None" = None
    sensitivity: "Tensor | None" = None
    drift: "Tensor | None" = None
    digest: str = ""
    derived: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
