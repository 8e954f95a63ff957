"""Rounding of a linear's input to floating-point numbers of few bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autocomp.core.errors import PlanError
from autocomp.formats.steps import Step
from autocomp.formats.straight_through import straight_through
from autocomp.kernels.float_codes import CODES, FloatCode
from autocomp.kernels.quantize_activations import SMALLEST_ABSMAX

CODE_OF_BITS = {4: "e2m1", 8: "e4m3"}


@dataclass(frozen=True, slots=True)
class RoundFloatInput(Step):
    """``x̂ = t · nearest(x / t)``, ``t = absmax / largest`` of each token as it comes.

    The numbers are E2M1 of 4 bits, the largest 6, or E4M3 of 8, the largest 448.

    Args:
        bits: Bits of a rounded input, 4 or 8.
    """

    name: ClassVar[str] = "round-float-input"

    bits: int

    def __post_init__(self) -> None:
        """Check the bits.

        Raises:
            PlanError: If there are no such numbers.
        """
        if self.bits not in CODE_OF_BITS:
            raise PlanError(
                f"an input is rounded to floating-point numbers of {tuple(CODE_OF_BITS)} bits, "
                f"got {self.bits}."
            )

    @property
    def numbers(self) -> FloatCode:
        """Which numbers inputs are rounded to; all of them are numbers of E4M3."""
        return CODES[CODE_OF_BITS[self.bits]]

    def apply(self, inputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the rounded input, with the gradient of the identity."""
        points, step = self.points(inputs.detach())
        return straight_through(inputs, (points * step).to(inputs.dtype))

    def points(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return numbers (…, in) and t (…, 1), both fp32."""
        values = inputs.float()
        absmax = values.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST_ABSMAX)
        step = absmax / self.numbers.largest
        return self.numbers.nearest(values / step), step
