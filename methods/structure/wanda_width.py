"""Wanda for whole channels: narrow every MLP alike, by weight times input norm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autocomp.core.method import Edit, Scope
from autocomp.core.sketch import Sketch
from autocomp.core.stats import Needs, Stats
from autocomp.methods._hessian import require
from autocomp.methods._width import WidthSpec, kept_channels, uniform_widths, writers


@dataclass(frozen=True, slots=True)
class WandaWidthSpec(WidthSpec):
    """Keep the same share of channels in every MLP: ``wandawidth-p80``."""

    method: ClassVar[str] = "wandawidth"


class WandaWidth:
    """Score ``mean_i |W_ij| · sqrt(E[x_j²])`` of an inner channel; every MLP keeps its best share.

    All MLPs get one width and no bias, so the result is an ordinary smaller model.

    Reference:
        Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models,
        https://arxiv.org/abs/2306.11695
    """

    scope: ClassVar[Scope] = "architecture"
    spec: ClassVar[type[WandaWidthSpec]] = WandaWidthSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "narrow every MLP alike by weight times input norm"
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.11695"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.NORMS})

    @torch.no_grad()
    def edit(
        self,
        sketch: Sketch,
        spec: WandaWidthSpec,
        weight: Callable[[str], Tensor],
        stats: Mapping[str, Stats],
    ) -> Edit:
        """Return the kept channels of every MLP.

        Args:
            sketch: The base model.
            spec: Share kept.
            weight: Returns a site's weight, (out, in) fp32.
            stats: ``norms``, (in,) fp32, of the MLPs' output linears.

        Raises:
            PlanError: If a statistic is missing.
            NumericalError: If a score is not finite.
        """
        scores = {}
        for mlp, site in writers(sketch, stats).items():
            norms = require(stats[site.name], "norms", "wandawidth", site.shape[1])
            scores[mlp] = weight(site.name).abs().mean(dim=0) * norms
        widths = {mlp: len(score) for mlp, score in scores.items()}
        return Edit(kept_channels(scores, uniform_widths(widths, spec.keep_percent)), {})
