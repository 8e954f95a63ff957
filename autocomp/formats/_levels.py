"""What non-uniform formats share: the nearest of a few levels."""

import torch
from torch import Tensor


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest level of each value; of equally near ones, the lower.

    Args:
        values: (rows, n) fp32.
        levels: (rows, k) fp32 in any order, which may hold equal ones.

    Returns:
        (rows, n) int64 in ``0 … k − 1``.
    """
    ordered, order = levels.sort(dim=1, stable=True)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    return order.gather(1, torch.searchsorted(middles.contiguous(), values.contiguous()))
