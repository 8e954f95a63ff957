"""Drawing from discrete distributions, the same on every device and in every batch."""

import torch
from torch import Tensor


def invert_cumulative(share: Tensor, level: Tensor) -> Tensor:
    """Draw one index a row by inverting the cumulative distribution.

    Args:
        share: (rows, outcomes), probabilities or any positive multiple of them.
        level: (rows, 1), uniform in [0, 1); drawn on the CPU, so that every device draws alike.

    Returns:
        (rows, 1) int64, on the device of ``share``.
    """
    below = share.cumsum(dim=-1)
    found = torch.searchsorted(below, level.to(share.device) * below[:, -1:])
    return found.clamp_max_(share.shape[1] - 1)
