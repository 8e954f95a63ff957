"""FLAP: drop the MLP channels that fluctuate least, and put their mean into a bias."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.method import Edit, Scope
from autocomp.core.sketch import Sketch
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._width import WidthSpec, adaptive_widths, kept_channels, writers

SMALLEST_DEVIATION = 1e-30


@dataclass(frozen=True, slots=True)
class FlapSpec(WidthSpec):
    """Keep the channels that fluctuate most over the model: ``flap-p80``."""

    method: ClassVar[str] = "flap"


class Flap:
    """Score ``Var[x_j] · ‖W_:j‖²`` of an inner channel: its share of the output's variance.

    Scores are standardised a layer and ranked over all layers, so every layer gets its own width.
    The output bias ``Σ_j W_:j E[x_j]`` over what was dropped keeps the mean output as it was; the
    squared error is ``tr(W_p Cov_p W_pᵀ)``, p the dropped channels.

    Reference:
        An et al. 2023, Fluctuation-based Adaptive Structured Pruning for Large Language Models,
        https://arxiv.org/abs/2312.11983
    """

    scope: ClassVar[Scope] = "architecture"
    spec: ClassVar[type[FlapSpec]] = FlapSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "narrow the MLPs where channels fluctuate least, with a bias"
    reference: ClassVar[str] = "https://arxiv.org/abs/2312.11983"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.MEAN, Needs.NORMS})

    @torch.no_grad()
    def edit(
        self,
        sketch: Sketch,
        spec: FlapSpec,
        weight: Callable[[str], Tensor],
        stats: Mapping[str, Stats],
    ) -> Edit:
        """Return the kept channels of every MLP that loses some, and its output bias.

        Args:
            sketch: The base model.
            spec: Share kept.
            weight: Returns a site's weight, (out, in) fp32.
            stats: ``mean`` and ``norms``, (in,) fp32, of the MLPs' output linears.

        Raises:
            PlanError: If a statistic is missing.
            NumericalError: If a score is not finite.
        """
        layers = writers(sketch, stats)
        scores = {
            mlp: fluctuation(weight(site.name), stats[site.name]) for mlp, site in layers.items()
        }
        shared = {mlp: standardised(score) for mlp, score in scores.items()}
        kept = kept_channels(scores, adaptive_widths(shared, spec.keep_percent))
        bias = {}
        for mlp, channels in kept.items():
            site = layers[mlp].name
            mean = require(stats[site], "mean", "flap", len(scores[mlp])).clone()
            mean[channels] = 0.0
            bias[site] = weight(site) @ mean
        return Edit(kept, bias)


def fluctuation(weight: Tensor, stats: Stats) -> Tensor:
    """Return ``Var[x_j] · ‖W_:j‖²``, (in,), for a weight (out, in)."""
    norms = require(stats, "norms", "flap", weight.shape[1])
    mean = require(stats, "mean", "flap", weight.shape[1])
    variance = (norms.square() - mean.square()).clamp_min(0.0)
    return variance * weight.square().sum(dim=0)


def standardised(score: Tensor) -> Tensor:
    """Return a layer's scores with mean 0 and standard deviation 1."""
    return (score - score.mean()) / score.std().clamp_min(SMALLEST_DEVIATION)
