"""The matrix on a uniform grid inside a compressed weight, taken out and put back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from autocomp.formats.base import CompressedWeight


@dataclass(frozen=True, slots=True)
class GridLeaf:
    """What of a compressed weight may be rounded anew without changing its format or its bytes.

    What a linear multiplies is ``scale · (codes − zero) + offset``, with zeros in place of the
    first term where a mask removes it.

    Args:
        target: (out, in) fp32, the matrix that stands on the grid in place of this one.
        bits: Bits a code.
        symmetric: The zero point is fixed.
        codes: (out, in) uint8 in ``0 … 2^bits − 1``; without meaning where nothing is kept.
        scale: (out, groups) fp32; a group is ``in / groups`` consecutive inputs.
        zero: (out, groups) fp32; whole numbers in ``0 … 2^bits − 1`` unless the format stores
            real ones.
        regrid: ``regrid(codes, scale, zero)`` returns the compressed weight with these in place,
            all else unchanged; the scales are rounded to float16.
        keep: (out, in) bool, or ``None`` where nothing is removed.
        offset: (out, in) fp32, a fixed correction, or ``None``.
        fixed: Scales and zero points stay, because others share what they are stored by:
            ``regrid`` puts in place the codes alone.
    """

    target: Tensor
    bits: int
    symmetric: bool
    codes: Tensor
    scale: Tensor
    zero: Tensor
    regrid: "Callable[[Tensor, Tensor, Tensor], CompressedWeight]"
    keep: Tensor | None = None
    offset: Tensor | None = None
    fixed: bool = False
