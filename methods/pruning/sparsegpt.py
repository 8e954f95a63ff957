"""SparseGPT: pruning that moves each column's error into the columns not yet pruned."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.spec import MaskSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.bitmask import Bitmask
from autocomp.formats.nm import NM
from autocomp.formats.uniform import Grid
from autocomp.methods._column_solver import (
    STRIP,
    ColumnFactor,
    Solved,
    check_strip,
    solve_columns,
)
from autocomp.methods._masks import MaskMethod, removed


@dataclass(frozen=True, slots=True)
class SparseGptSpec(MaskSpec):
    """Second-order pruning: ``sparsegpt-s50``, ``sparsegpt-2:4``."""

    method: ClassVar[str] = "sparsegpt"


class SparseGpt(MaskMethod):
    """Score ``w²/U_jj²`` (``H⁻¹ = Uᵀ U``) of the weights compensated so far, closed-form update.

    Unstructured, exactly ``⌊out·width·s⌋`` weights of every strip of 128 columns go (the last
    strip may be narrower); N:M patterns are chosen when the solver reaches them.

    Reference:
        Frantar and Alistarh 2023, SparseGPT, https://arxiv.org/abs/2301.00774
    """

    spec: ClassVar[type[SparseGptSpec]] = SparseGptSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "second-order pruning that updates the kept weights"
    reference: ClassVar[str] = "https://arxiv.org/abs/2301.00774"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})
    adaptive: ClassVar[bool] = True

    def score(self, weight: Tensor, spec: SparseGptSpec, stats: Stats | None) -> Tensor:
        """Return ``|w| / sqrt([H⁻¹]_jj)`` (out, in): its square is what dropping w alone costs.

        All other weights of the row make up for it, so it does not depend on the order of inputs.
        Weights of inputs that are always zero cost nothing.

        Raises:
            PlanError: If the Hessian is missing.
            NumericalError: If H cannot be factorised.
        """
        factor = ColumnFactor.shared(stats, False, "sparsegpt", weight.shape[1])
        score = weight.abs() / (factor.lower * factor.pivots).norm(dim=1)
        return score.masked_fill_(factor.dead, 0.0)

    def dropped(self, spec: SparseGptSpec, shape: tuple[int, int]) -> int:
        """Return ``Σ ⌊out·width·s⌋`` over the strips of 128 columns."""
        assert spec.sparsity is not None
        out_features, in_features = shape
        widths = (min(STRIP, in_features - start) for start in range(0, in_features, STRIP))
        return sum(removed(out_features * width, spec.sparsity) for width in widths)

    def layout(
        self, spec: MaskSpec, shape: tuple[int, int], dtype: str, grid: Grid | None = None
    ) -> Bitmask | NM:
        """Return the layout of the pruned weight.

        Raises:
            PlanError: If the pattern does not divide the inputs and the solver's strips.
        """
        check_strip(spec)
        return super().layout(spec, shape, dtype, grid)

    def solve(self, weight: Tensor, spec: SparseGptSpec, stats: Stats | None) -> Solved:
        """Return the pruned weight (out, in) and its mask.

        Raises:
            PlanError: If the Hessian is missing.
            NumericalError: If H cannot be factorised.
        """
        factor = ColumnFactor.shared(stats, False, "sparsegpt", weight.shape[1])
        return solve_columns(weight, factor, prune=spec)

    def mask(self, weight: Tensor, spec: SparseGptSpec, stats: Stats | None) -> Tensor:
        """Return the keep-mask (out, in) bool."""
        keep = self.solve(weight, spec, stats).keep
        assert keep is not None
        return keep

    def compress(
        self, weight: Tensor, spec: SparseGptSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return the kept, updated weights; ``weight`` is (out, in), fp32."""
        layout = self.layout(spec, (weight.shape[0], weight.shape[1]), dtype)
        solved = self.solve(weight, spec, stats)
        assert solved.keep is not None
        return layout.pack(solved.keep, solved.weight)
