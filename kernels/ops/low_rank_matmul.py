"""Product with two dense factors, one after the other."""

from torch import Tensor

from autocomp.kernels._op import operation
from autocomp.kernels.dense_matmul import dense_matmul


@operation
def low_rank_matmul(inputs: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Multiply by a low-rank weight: ``y = (x Rᵀ) Lᵀ``.

    Args:
        inputs: (rows, in) of a floating dtype.
        left: L (out, rank) of a floating dtype.
        right: R (rank, in) of a floating dtype.

    Returns:
        (rows, out) in the dtype of the inputs.
    """
    return dense_matmul(dense_matmul(inputs, right), left)
