"""Narrower MLPs: the spec, the step in which widths move, and which channels stay.

A layer's inner channels are ranked by a score; how many stay is decided by the layer alone
(*uniform*) or by one ranking over all layers (*adaptive*).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.sketch import Site, Sketch
from autocomp.core.stats import Stats

LARGEST_UNIT = 64
UNITS_A_LAYER = 8


@dataclass(frozen=True, slots=True)
class WidthSpec:
    """The share of the MLPs' inner channels that stays, over the whole model.

    Token: ``<method>-p<percent of channels kept>``.
    """

    method: ClassVar[str] = ""
    slot: ClassVar[str] = "architecture"

    keep_percent: float

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.keep_percent <= 100:
            raise PlanError(
                f"{self.method}: the percentage of channels kept must lie in (0, 100], got "
                f"{self.keep_percent:g}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        return f"{self.method}-p{self.keep_percent:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token."""
        found = re.fullmatch(rf"{cls.method}-p(\d+(?:\.\d+)?)", text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected {cls.method}-p<percent of channels kept>, such "
                f"as {cls.method}-p80."
            )
        return cls(float(found[1]))


def writers(sketch: Sketch, stats: Mapping[str, Stats]) -> dict[str, Site]:
    """Return the linear that writes each MLP's output by MLP name, in model order."""
    return {sketch.owner[site.name]: site for site in sketch.sites if site.name in stats}


def unit(widths: Mapping[str, int]) -> int:
    """Return how many channels stay or go together.

    The largest power of two up to 64 (the tile of the kernels, the usual group of a quantizer)
    that divides every width and of which every layer has at least eight.
    """
    size = LARGEST_UNIT
    while any(width % size or width < UNITS_A_LAYER * size for width in widths.values()):
        if size == 1:
            break
        size //= 2
    return size


def uniform_widths(widths: Mapping[str, int], keep_percent: float) -> dict[str, int]:
    """Return the channels that each layer keeps when every layer keeps the same share."""
    size = unit(widths)
    return {
        name: size * max(1, round(keep_percent / 100 * width / size))
        for name, width in widths.items()
    }


def adaptive_widths(scores: Mapping[str, Tensor], keep_percent: float) -> dict[str, int]:
    """Return the channels that each layer keeps when all layers share one ranking.

    Every layer's ranked channels are cut into units. The units with the largest mean score stay,
    as many as come nearest to the share; the first of every layer always does.

    Args:
        scores: (channels,) by layer, comparable between layers.
        keep_percent: Share of all channels.
    """
    size = unit({name: len(score) for name, score in scores.items()})
    ranked = {
        name: score.double().sort(descending=True).values.view(-1, size).mean(dim=1).tolist()
        for name, score in scores.items()
    }
    units = sum(map(len, ranked.values()))
    wanted = max(len(ranked), round(keep_percent / 100 * units))
    rest = [(-value, name) for name, values in ranked.items() for value in values[1:]]
    chosen = [name for _, name in sorted(rest, key=lambda item: item[0])]
    chosen = [*ranked, *chosen[: wanted - len(ranked)]]
    return {name: size * chosen.count(name) for name in ranked}


def kept_channels(scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the sorted indices of each layer's best channels; layers that lose none are left out.

    Args:
        scores: (channels,) by layer.
        widths: How many stay, by layer.

    Raises:
        NumericalError: If a score is not finite.
    """
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise NumericalError(
                f"{name}: the channel scores hold NaN or infinity; check its weights and the "
                "calibration run."
            )
    return {
        name: score.argsort(descending=True, stable=True)[: widths[name]].sort().values
        for name, score in scores.items()
        if widths[name] < len(score)
    }
