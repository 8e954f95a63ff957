"""Weight error: the squared change of the weights, no data.

* Weight, embedding and head: ``‖D‖²_F``, D (out, in), in squared units of the weight; a tied
  matrix counts for both of its uses.
* Bypass: ``Σ ‖W‖²_F`` over the linears of the sub-block, all of whose weights become zero.
* Cache, of which no weight changes: the same sum times ``E‖Δy‖² / E‖y‖²``, so that a cache whose
  error is as large as what the attention adds costs what bypassing the attention does.
* Rounded input: ``‖D‖²_F + ‖W‖²_F · E‖Δ − D x‖² / E‖W x‖²``: the relative error by rounding alone
  is added on the scale of the weight.

Reference: Nagel et al. 2021, https://arxiv.org/abs/2106.08295 (round to nearest and its error).
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.calibrate.stream import EndStatistics
from autocomp.formats.base import CompressedWeight
from autocomp.search.scores.base import LinearSite, Score


class WeightError(Score):
    """``‖D‖²_F``: the squared change of the weights."""

    summary: ClassVar[str] = "‖D‖²_F, the squared change of the weights"
    reference: ClassVar[str] = "https://arxiv.org/abs/2106.08295"
    in_nats: ClassVar[bool] = False

    def per_token(self, change: Tensor, gradient: Tensor, sinks: Tensor | None) -> Tensor:
        """Return ``‖Δ‖²``, which :meth:`scale` turns into weights."""
        return change.square().sum(dim=1)

    def weights(self, site: LinearSite, changes: Tensor, pairs: Tensor) -> Tensor:
        """Return ``‖D‖²_F`` of each change."""
        return changes.square().sum(dim=(1, 2), dtype=torch.float64)

    def rounded(self, site: LinearSite, compressed: CompressedWeight) -> float:
        """Return ``‖D‖²_F`` and what rounding adds to it."""
        change = compressed.to_dense() - site.weight
        total = site.output_change(compressed, site.sample)
        rounding = total - site.product(site.sample, change.T)
        output = site.product(site.sample, site.weight.T)
        relative = _energy(rounding) / max(_energy(output), torch.finfo(torch.float32).tiny)
        return _energy(change) + _energy(site.weight) * relative

    def scale(self, weights: Iterable[Tensor], drop: float) -> float:
        """Return ``Σ ‖W‖²_F / E‖y‖²``."""
        return sum(map(_energy, weights)) / drop if drop > 0 else 0.0

    def embedding(self, change: Tensor, end: EndStatistics) -> float:
        """Return ``‖D‖²_F``."""
        return _energy(change)

    def head(self, weight: Tensor, compressed: Tensor, end: EndStatistics) -> float:
        """Return ``‖D‖²_F``."""
        return _energy(compressed - weight)


def _energy(matrix: Tensor) -> float:
    """Return the sum of squares."""
    return matrix.square().sum(dtype=torch.float64).item()
