"""Masks with exact counts, so that the size of a pruned layer follows from its shape."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from autocomp.core.method import Scope
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.bitmask import Bitmask
from autocomp.formats.nm import NM
from autocomp.formats.uniform import Grid

PASSES = 5


def removed(total: int, sparsity: float) -> int:
    """Return how many of ``total`` weights a sparsity removes: ``⌊total · sparsity⌋``.

    A billionth is added first, so that 29 % of 100 is 29 although ``100 * 0.29`` lies just
    below.
    """
    return math.floor(total * sparsity + 1e-9)


def drop_smallest(score: Tensor, count: int) -> Tensor:
    """Return a keep-mask that drops exactly the ``count`` smallest scores of each row.

    Of equal scores the leftmost go first, as in a stable sort.

    Args:
        score: (rows, n), finite.
        count: Entries to drop a row, 0..n.

    Returns:
        (rows, n) bool.
    """
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count, dim=1, keepdim=True).values
    drop = score < threshold
    missing = count - drop.sum(dim=1, keepdim=True)
    ties = score == threshold
    if bool((ties.sum(dim=1, keepdim=True) > missing).any()):
        ties &= ties.cumsum(dim=1) <= missing
    return ~(drop | ties)


def pattern_mask(score: Tensor, spec: MaskSpec) -> Tensor:
    """Return the N:M keep-mask: the ``keep`` best of every ``m`` consecutive inputs of a row.

    Args:
        score: (out, in); ``m`` divides ``in``.
        spec: An N:M spec.
    """
    assert spec.keep is not None
    assert spec.m is not None
    mask = drop_smallest(score.reshape(-1, spec.m), spec.m - spec.keep)
    return mask.reshape(score.shape)


def wanda_score(weight: Tensor, norms: Tensor) -> Tensor:
    """Return ``|W_ij| ‖x_j‖`` (out, in), the root of what dropping w alone costs the output.

    Args:
        weight: (out, in).
        norms: (in,), ``sqrt(E[x²])``.
    """
    return weight.abs() * norms


class MaskMethod(ABC):
    """What mask methods share: a score, exact counts, layout, packing, and where they apply.

    The mask keeps the largest scores: of every ``m`` inputs, of each row, or of the matrix.
    ``adaptive`` says that the mask is chosen inside the column solver, with the update of what
    it keeps.
    """

    scope: ClassVar[Scope] = "site"
    formats: ClassVar[tuple[str, ...]] = ("bitmask", "nm")
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})
    adaptive: ClassVar[bool] = False

    @abstractmethod
    def score(self, weight: Tensor, spec: Any, stats: Stats | None) -> Tensor:
        """Return what each weight (out, in) is worth, (out, in), none below 0."""

    def passes(self, spec: Any) -> int:
        """Return how many times ranking the scores goes over the weight, as measured."""
        return PASSES

    def by_row(self, spec: Any) -> bool:
        """Return whether an unstructured mask drops equally many weights of every row."""
        return True

    def dropped(self, spec: Any, shape: tuple[int, int]) -> int:
        """Return how many weights an unstructured mask removes from a weight (out, in).

        ``out · ⌊in·s⌋`` by row, ``⌊out·in·s⌋`` of the matrix.
        """
        out_features, in_features = shape
        if self.by_row(spec):
            return out_features * removed(in_features, spec.sparsity)
        return removed(out_features * in_features, spec.sparsity)

    def mask(self, weight: Tensor, spec: Any, stats: Stats | None) -> Tensor:
        """Return the keep-mask (out, in) bool of a weight (out, in).

        Raises:
            PlanError: If a statistic is missing.
        """
        score = self.score(weight, spec, stats)
        if spec.sparsity is None:
            return pattern_mask(score, spec)
        rows = score if self.by_row(spec) else score.reshape(1, -1)
        return drop_smallest(rows, removed(rows.shape[1], spec.sparsity)).view(weight.shape)

    def layout(
        self, spec: MaskSpec, shape: tuple[int, int], dtype: str, grid: Grid | None = None
    ) -> Bitmask | NM:
        """Return the layout of the pruned weight, from its shape alone.

        Args:
            spec: Sparsity or pattern.
            shape: (out, in).
            dtype: Dtype of the kept values when there is no grid.
            grid: Grid of the kept values, or ``None``.

        Raises:
            PlanError: If the pattern or the grid's groups do not divide the inputs.
        """
        if spec.keep is not None and spec.m is not None:
            return NM(shape, spec.keep, spec.m, dtype, grid)
        assert spec.sparsity is not None
        kept = shape[0] * shape[1] - self.dropped(spec, shape)
        return Bitmask(shape, kept, dtype, grid)

    def compress(
        self, weight: Tensor, spec: Any, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return the kept weights, unchanged; ``weight`` is (out, in), fp32."""
        layout = self.layout(spec, (weight.shape[0], weight.shape[1]), dtype)
        return layout.pack(self.mask(weight, spec, stats), weight)
