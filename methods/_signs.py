"""Numbers as sums of scaled signs: least squares for the scales, the nearest sum for the signs.

Both steps lower ``Σ_j c_j (w_j − Σ_i α_i b_ij − o)²``, so alternating between them does.

Reference: Xu et al. 2018, Alternating Multi-bit Quantization, https://arxiv.org/abs/1802.00150
"""

import torch
from torch import Tensor

from autocomp.formats._levels import nearest_level

ROUNDS = 15
RIDGE = 1e-9
CHUNK_VALUES = 1 << 16  # stays in the cache


def alternate(
    groups: Tensor, importance: Tensor, signs: Tensor, with_offset: bool
) -> tuple[Tensor, Tensor]:
    """Return the scales and the offset of each group after 15 rounds.

    Args:
        groups: w (n, size) fp32.
        importance: c (n, size) fp32, not negative; a group without any counts alike.
        signs: What each code stands for, (2^bits, bits), ±1.
        with_offset: Whether there is an offset.

    Returns:
        Positive scales (n, bits), the largest first, and offsets (n,), 0 without; fp32.
    """
    step = max(1, CHUNK_VALUES // groups.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(groups), step)]
    found = [_alternate(groups[p], importance[p], signs, with_offset) for p in parts]
    return torch.cat([scale for scale, _ in found]), torch.cat([offset for _, offset in found])


def _alternate(
    groups: Tensor, importance: Tensor, signs: Tensor, with_offset: bool
) -> tuple[Tensor, Tensor]:
    total = importance.sum(dim=1, keepdim=True)
    share = torch.where(total == 0, 1 / groups.shape[1], importance / total.clamp_min(1e-30))
    offset = (share * groups).sum(dim=1) if with_offset else torch.zeros_like(groups[:, 0])
    scale = greedy(groups - offset[:, None], share, signs.shape[1])
    for _ in range(ROUNDS):
        codes = nearest_level(groups, scale @ signs.T + offset[:, None])
        scale, offset = refitted(groups, share, codes, signs, scale, with_offset)
    return scale, offset


def greedy(groups: Tensor, share: Tensor, bits: int) -> Tensor:
    """Return the scales (n, bits) of one plane after another: the mean size of what is left.

    The sign of 0 is +1.
    """
    rest, scales = groups.clone(), []
    for _ in range(bits):
        scale = (share * rest.abs()).sum(dim=1, keepdim=True)
        rest -= torch.where(rest < 0, -scale, scale)
        scales.append(scale)
    return torch.cat(scales, dim=1)


def refitted(
    groups: Tensor,
    share: Tensor,
    codes: Tensor,
    signs: Tensor,
    current: Tensor,
    with_offset: bool,
) -> tuple[Tensor, Tensor]:
    """Return the best scales (n, bits) and offset (n,) for given codes.

    ``α = (Bᵀ C B)⁻¹ Bᵀ C w`` from the weight and the sum of each code's numbers. A negative scale
    is a positive one with the signs of its plane turned, so scales are made positive; the codes
    are chosen anew. Of scales that fit alike, since planes are alike, the nearest to the current
    ones (n, bits) are taken (a ridge of 1e-9 of the trace): planes that once agree, as around a
    single large number, so part again in the next round.
    """
    planes = signs.double()
    start = current.double()
    if with_offset:
        planes = torch.cat([planes, planes.new_ones(len(planes), 1)], dim=1)
        start = torch.nn.functional.pad(start, (0, 1))
    weight = planes.new_zeros(len(groups), len(planes)).scatter_add_(1, codes, share.double())
    moment = torch.zeros_like(weight).scatter_add_(1, codes, (share * groups).double())
    normal = torch.einsum("kp,nk,kq->npq", planes, weight, planes)
    wanted = (moment @ planes + RIDGE * start)[..., None]
    normal += RIDGE * torch.eye(planes.shape[1], dtype=planes.dtype, device=planes.device)
    found = torch.linalg.solve(normal, wanted)[..., 0].float()
    bits = signs.shape[1]
    scale = found[:, :bits].abs().sort(dim=1, descending=True).values
    return scale, found[:, bits] if with_offset else torch.zeros_like(groups[:, 0])
