"""Magnitude pruning: the baseline mask, without calibration."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Needs, Stats
from autocomp.methods._masks import MaskMethod, drop_smallest, pattern_mask, removed


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

    def dropped(self, sparsity: float, shape: tuple[int, int]) -> int:
        """Return ``⌊out·in·s⌋``."""
        return removed(shape[0] * shape[1], sparsity)

    def mask(self, weight: Tensor, spec: MagnitudeSpec, stats: Stats | None) -> Tensor:
        """Return the keep-mask (out, in) bool; ``stats`` is not used."""
        score = weight.abs()
        if spec.sparsity is None:
            return pattern_mask(score, spec)
        count = removed(weight.numel(), spec.sparsity)
        return drop_smallest(score.reshape(1, -1), count).view(weight.shape)
