"""Round to the nearest floating-point numbers of 4 or 8 bits, without calibration."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.methods._float import FloatMethod, FloatSpec


@dataclass(frozen=True, slots=True)
class FpSpec(FloatSpec):
    """The nearest floating-point number: ``fp-w4g64``, ``fp-w8``, ``fp-w4g32-m1`` (MXFP4)."""

    method: ClassVar[str] = "fp"


class Fp(FloatMethod):
    """``w ≈ s · q`` with q the nearest number of E2M1, E4M3 or E5M2, halves to the even mantissa.

    The scale s of a group of a row of the (out, in) weight is ``absmax / largest``, so that
    nothing is clipped, where the largest number is 6, 448 or 57344; ``m1`` rounds it up to a power
    of two and ``m2`` to one times the largest scale of the row.

    Reference:
        Micikevicius et al. 2022, FP8 Formats for Deep Learning, https://arxiv.org/abs/2209.05433
    """

    spec: ClassVar[type[FpSpec]] = FpSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "the nearest floats of 4 or 8 bits, no calibration"
    reference: ClassVar[str] = "https://arxiv.org/abs/2209.05433"
    needs: ClassVar[frozenset[Needs]] = frozenset()

    def compress(
        self, weight: Tensor, spec: FpSpec, stats: Stats | None, dtype: str
    ) -> CompressedWeight:
        """Return packed codes; ``weight`` is (out, in), fp32; nothing else is read."""
        layout = self.layout(spec, (weight.shape[0], weight.shape[1]))
        return layout.pack(weight, self.grid(weight, spec).sides)
