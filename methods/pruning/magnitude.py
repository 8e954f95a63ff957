"""Magnitude pruning: the baseline mask, without calibration."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._masks import MaskMethod


@dataclass(frozen=True, slots=True)
class MagnitudeSpec(MaskSpec):
    """Keep the largest weights: ``magnitude-s50``, ``magnitude-2:4``."""

    method: ClassVar[str] = "magnitude"


class Magnitude(MaskMethod):
    """Drops the smallest ``|w|``: ``⌊out·in·s⌋`` of the matrix, or ``m − keep`` of every ``m``.

    Reference:
        Han et al. 2015, Learning both Weights and Connections, https://arxiv.org/abs/1506.02626
    """

    spec: ClassVar[type[MagnitudeSpec]] = MagnitudeSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "keep the largest weights of the matrix, no calibration"
    reference: ClassVar[str] = "https://arxiv.org/abs/1506.02626"
    needs: ClassVar[frozenset[Needs]] = frozenset()

    def by_row(self, spec: MagnitudeSpec) -> bool:
        """Return ``False``: the smallest of the whole matrix go."""
        return False

    def score(self, weight: Tensor, spec: MagnitudeSpec, stats: Stats | None) -> Tensor:
        """Return ``|w|`` (out, in); ``stats`` is not used."""
        return weight.abs()
