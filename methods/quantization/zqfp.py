"""ZeroQuant-FP: weights of 4-bit floating-point numbers, rounded with error feedback."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.methods._column_solver import ColumnFactor, solve_columns
from autocomp.methods._float import FloatMethod, FloatSpec


@dataclass(frozen=True, slots=True)
class ZqfpSpec(FloatSpec):
    """ZeroQuant-FP: ``zqfp-w4g256-m2``, with rounded inputs ``zqfp-w4g256-m2+fpabsmax-a8``."""

    method: ClassVar[str] = "zqfp"


class Zqfp(FloatMethod):
    """GPTQ on a grid of E2M1 (or E4M3, E5M2), ``s = absmax / largest`` of the original weight.

    Columns of the (out, in) weight are visited by decreasing ``diag H``, as ``gptq`` does, and the
    error of each moves into those not yet rounded. ``m1`` and ``m2`` are the paper's scales that
    make a 4-bit code an 8-bit one by a shift: ``2^⌈log₂ s⌉``, and ``s_max / 2^⌊log₂(s_max / s)⌋``
    with the largest of a row, the row being our choice, and rounded so that nothing is clipped.
    The paper's low-rank compensation is a residual: ``zqfp-w4g256-m2+lorc-r8-w8``.

    Reference:
        Wu et al. 2023, ZeroQuant-FP, https://arxiv.org/abs/2307.09782
    """

    spec: ClassVar[type[ZqfpSpec]] = ZqfpSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "second-order rounding to floats of 4 or 8 bits"
    reference: ClassVar[str] = "https://arxiv.org/abs/2307.09782"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.HESSIAN})

    def compress(
        self, weight: Tensor, spec: ZqfpSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes; ``weight`` is (out, in), fp32; ``dtype`` is not used.

        Raises:
            PlanError: If the Hessian is missing or the group size does not divide the inputs.
            NumericalError: If H cannot be factorised.
        """
        layout = self.layout(spec, (weight.shape[0], weight.shape[1]))
        factor = ColumnFactor.shared(stats, True, "zqfp", weight.shape[1])
        grid = self.grid(weight, spec)
        return layout.pack(solve_columns(weight, factor, grid=grid).weight, grid.sides)
