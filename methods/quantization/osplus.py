"""Outlier Suppression+: scale outlying input channels down to the threshold that rounds best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.method import Reader
from autocomp.core.spec import InputSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.steps import Scale
from autocomp.methods._hessian import require
from autocomp.methods._steps import ScaleMethod, output_error

THRESHOLDS = 50
LOWEST_SHARE = 1e-3
ROWS = 256


@dataclass(frozen=True, slots=True)
class OsPlusSpec(InputSpec):
    """Scale outlying channels down to a searched threshold: ``osplus``."""

    method: ClassVar[str] = "osplus"


class OsPlus(ScaleMethod):
    """``s_j = max(1, absmax_j / t)``: no channel of ``x / s`` exceeds t, small ones stay.

    t is the threshold with the least ``E‖Ŵ' x̂' − W x‖²`` of the rounded ``W · s``, (out, in), and
    the rounded ``x / s``, on at most 256 input rows; of 50 thresholds in geometric steps from the
    largest channel maximum, where ``s = 1``, down to the smallest one or a thousandth of the
    largest. Below the smallest every channel has the same maximum and nothing changes any more.

    The scale alone, as the paper does for models without biases: its channel-wise shift of the
    input needs a bias ``W z`` to make up for it.

    Reference:
        Wei et al. 2023, Outlier Suppression+, https://arxiv.org/abs/2304.09145
    """

    spec: ClassVar[type[OsPlusSpec]] = OsPlusSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "scale outlying input channels down to a searched threshold"
    reference: ClassVar[str] = "https://arxiv.org/abs/2304.09145"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.ABSMAX, Needs.SAMPLE})

    def scale(self, readers: Sequence[Reader], spec: OsPlusSpec, stats: Stats | None) -> Tensor:
        """Return s (in,) fp32.

        Raises:
            PlanError: If the largest magnitudes or a sample of the input are missing.
        """
        width = readers[0].weight.shape[1]
        absmax = require(stats, "absmax", "osplus", width)
        sample = require(stats, "sample", "osplus", width)
        thinned = Stats(absmax=absmax, sample=sample[:: -(-len(sample) // ROWS)])
        step, largest = Scale(width), float(absmax.max())
        lowest = max(float(absmax.min()), LOWEST_SHARE * largest)
        if largest == 0:
            return torch.ones_like(absmax)
        ratio = lowest / largest

        def candidate(index: int) -> Tensor:
            threshold = largest * ratio ** (index / (THRESHOLDS - 1))
            return (absmax / threshold).clamp_min(1.0)

        def error(index: int) -> float:
            tensors = {"scale": candidate(index).to(torch.float16)}
            return sum(output_error(reader, step, tensors, thinned) for reader in readers)

        return candidate(min(range(THRESHOLDS), key=error))
