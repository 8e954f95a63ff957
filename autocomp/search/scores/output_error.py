"""Output error: the squared change of what a layer returns, in squared units of its output.

``E‖Δ‖²`` over tokens, Δ (out,): what GPTQ and the layer-wise methods minimise.

* Weight: ``tr(D H Dᵀ)``, D (out, in), H (in, in).
* Rounded input, bypass (``E‖y‖²``) and cache: ``E‖Δ‖²``.
* Embedding: ``Σ_v f_v ‖d_v‖²`` with the tokens' frequencies f; head: ``tr(D H_h Dᵀ)`` in squared
  logits; a tied matrix is the sum of both.

Reference: Frantar et al. 2022, https://arxiv.org/abs/2210.17323
"""

from typing import ClassVar

import torch
from torch import Tensor

from autocomp.calibrate.stream import EndStatistics
from autocomp.formats.base import CompressedWeight
from autocomp.search.scores.base import LinearSite, Score, frequency_form


class OutputError(Score):
    """``tr(D H Dᵀ)``: the squared change of a layer's output."""

    summary: ClassVar[str] = "tr(D H Dᵀ), the squared change of a layer's output"
    reference: ClassVar[str] = "https://arxiv.org/abs/2210.17323"
    in_nats: ClassVar[bool] = False

    def per_token(self, change: Tensor, gradient: Tensor, sinks: Tensor | None) -> Tensor:
        """Return ``‖Δ‖²``."""
        return change.square().sum(dim=1)

    def weights(self, site: LinearSite, changes: Tensor, pairs: Tensor) -> Tensor:
        """Return ``tr(D H Dᵀ)`` of each change."""
        return torch.stack([_trace(site, change, site.hessian) for change in changes])

    def rounded(self, site: LinearSite, compressed: CompressedWeight) -> float:
        """Return ``E‖Δ‖²`` over the sampled tokens."""
        change = site.output_change(compressed, site.sample)
        return change.square().sum(dim=1).mean(dtype=torch.float64).item()

    def embedding(self, change: Tensor, end: EndStatistics) -> float:
        """Return ``Σ_v f_v ‖d_v‖²``."""
        return frequency_form(change, torch.eye(change.shape[1], device=change.device), end)

    def head(self, weight: Tensor, compressed: Tensor, end: EndStatistics) -> float:
        """Return ``tr(D H_h Dᵀ)``."""
        change = compressed - weight
        return (change @ end.head_hessian * change).sum(dtype=torch.float64).item()


def _trace(site: LinearSite, change: Tensor, hessian: Tensor) -> Tensor:
    """Return ``tr(D H Dᵀ)``, fp64."""
    return (site.product(change, hessian) * change).sum(dtype=torch.float64)
