"""GPTQ: rounding that moves each column's error into the columns not yet rounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.sketch import SiteKind
from autocomp.core.spec import UniformSpec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.methods._column_solver import ColumnFactor, round_columns
from autocomp.methods._uniform import UniformMethod


@dataclass(frozen=True, slots=True)
class GptqSpec(UniformSpec):
    """GPTQ on a uniform grid: ``gptq-w4g64``, ``gptq-w3-sym``, ``gptq-w2g32-mse``."""

    method: ClassVar[str] = "gptq"


class Gptq(UniformMethod):
    """Columns by decreasing ``diag H`` (act-order) on static grids, so no group index is stored.

    ``e_j = (w_j − q_j)/U_jj``, ``w_k ← w_k − e_j U_jk`` for k after j, ``H⁻¹ = Uᵀ U``, with
    ``0.01 · mean(diag H)`` added to the diagonal of ``H = E[x xᵀ]``, (in, in). With a diagonal H
    this is round to nearest.

    An embedding has no inputs, but its rows have a quadratic cost of the same form, so ``H`` there
    is whatever matrix calibration gives for it.

    Reference:
        Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323
    """

    spec: ClassVar[type[GptqSpec]] = GptqSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "second-order rounding with error feedback, in act-order"
    reference: ClassVar[str] = "https://arxiv.org/abs/2210.17323"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})
    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "embedding", "head"})

    def compress(
        self, weight: Tensor, spec: GptqSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes; ``weight`` is (out, in), fp32; ``dtype`` is not used.

        Raises:
            PlanError: If the Hessian is missing or the group size does not divide the inputs.
            NumericalError: If H cannot be factorised.
        """
        return self.compress_together([weight], [spec], stats, dtype)[0]

    def compress_together(
        self,
        weights: Sequence[Tensor],
        specs: Sequence[GptqSpec],
        stats: Stats | None,
        dtype: str,
    ) -> list[CompressedWeight]:
        """Compress weights that read the same input, on groups of one size, in one run."""
        factor = ColumnFactor.shared(stats, True, "gptq", weights[0].shape[1])
        pairs = list(zip(weights, specs, strict=True))
        layouts = [self.layout(spec, (len(weight), weight.shape[1])) for weight, spec in pairs]
        grids = [self.grid(weight, spec, stats) for weight, spec in pairs]
        codes = round_columns(weights, factor, grids)
        return [
            layout.pack(found, grid.scale, grid.zero)
            for layout, found, grid in zip(layouts, codes, grids, strict=True)
        ]
