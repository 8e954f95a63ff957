"""Product with two factors, one after the other, each dense or packed on a uniform grid."""

from typing import NamedTuple

from torch import Tensor

from autocomp.kernels._op import operation
from autocomp.kernels.dense_matmul import dense_matmul
from autocomp.kernels.weight_only_matmul import weight_only_matmul


class Packed(NamedTuple):
    """A factor (out, in) on a uniform grid: ``scale · (code − zero)``.

    Args:
        codes: (out, ceil(in·bits/8)) uint8.
        scale: (out, groups) fp16.
        zero: (out, ceil(groups·bits/8)) uint8; ``None`` is ``2^(bits−1)`` everywhere.
        bits: Bits a code, 1 to 8.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int


@operation
def low_rank_matmul(inputs: Tensor, left: Tensor | Packed, right: Tensor | Packed) -> Tensor:
    """Multiply by a low-rank weight: ``y = (x Rᵀ) Lᵀ``; packed factors stay packed.

    Args:
        inputs: (rows, in) of a floating dtype.
        left: L (out, rank) of a floating dtype, or packed.
        right: R (rank, in) of a floating dtype, or packed.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    return _multiply(_multiply(inputs, right), left)


def _multiply(inputs: Tensor, factor: Tensor | Packed) -> Tensor:
    """Multiply inputs (rows, in) by one factor (out, in)."""
    if isinstance(factor, Packed):
        return weight_only_matmul(inputs, *factor)
    return dense_matmul(inputs, factor)
