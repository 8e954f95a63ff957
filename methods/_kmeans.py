"""Weighted k-means of numbers, exactly: the best k values for each row of a matrix.

On a line, clusters are intervals of the sorted numbers, so the best ones follow from dynamic
programming over where intervals end. With the prefix sums ``S0 = Σ w`` and ``S1 = Σ w x``, an
interval (i, j] takes ``(S1_j − S1_i)² / (S0_j − S0_i)`` off ``Σ w x²``, and

    gain_c(j) = max_i gain_{c−1}(i) + (S1_j − S1_i)² / (S0_j − S0_i).

The best i never falls as j grows, so it is found for the middle j first and then, between the
neighbours that are known, for the quarters, the eighths, …: n log n steps a cluster. All rows take
these steps together.

Reference: Wu 1991, Optimal quantization by matrix searching, and Grønlund et al. 2017,
https://arxiv.org/abs/1701.07204
"""

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 16  # stays in the cache
SMALLEST_WEIGHT = 1e-6  # of the mean of a row: no interval weighs nothing


def kmeans(values: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """Return the centroids with the least ``Σ_j w_j min_c (x_j − c)²`` for each row.

    Deterministic; the optimum up to rounding in fp64. A weight below 1e-6 of the mean of its row
    counts as that much, and a row without weight as one of equal weights.

    Args:
        values: (rows, n), finite.
        weights: (rows, n), not negative.
        clusters: Number of centroids.

    Returns:
        (rows, clusters) fp64, ascending; where a row has fewer numbers than clusters, the largest
        centroid is repeated.
    """
    step = max(1, CHUNK_VALUES // values.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(values), step)]
    return torch.cat([_solve(values[p].double(), weights[p].double(), clusters) for p in parts])


def _solve(values: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """Solve a few rows, (rows, n) fp64."""
    mean = weights.mean(dim=1, keepdim=True)
    weights = torch.where(mean == 0, 1.0, weights / torch.where(mean == 0, 1.0, mean))
    weights = weights.clamp_min(SMALLEST_WEIGHT)
    ordered, order = values.sort(dim=1, stable=True)
    weights = weights.gather(1, order)
    centre = (weights * ordered).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    sums = _Sums(weights, ordered - centre)
    count = min(clusters, values.shape[1])
    found = sums.centroids(sums.intervals(count)) + centre
    return torch.cat([found, found[:, -1:].expand(-1, clusters - count)], dim=1)


class _Sums:
    """Prefix sums of sorted numbers, and the search over them.

    Args:
        weights: (rows, n) fp64, positive.
        values: (rows, n) fp64, ascending, their weighted mean 0.
    """

    def __init__(self, weights: Tensor, values: Tensor) -> None:
        rows, self.count = values.shape
        start = values.new_zeros(rows, 1)
        self.weight = torch.cat([start, weights.cumsum(dim=1)], dim=1)
        self.first = torch.cat([start, (weights * values).cumsum(dim=1)], dim=1)
        self.row = torch.arange(rows, device=values.device)[:, None] * (self.count + 1)

    def intervals(self, clusters: int) -> Tensor:
        """Return where the best intervals end, (rows, clusters + 1) int64, from 0 to n."""
        whole = torch.full_like(self.row, self.count)
        gain = self.first.square() / self.weight.clamp_min(SMALLEST_WEIGHT)
        start, starts = torch.zeros_like(gain, dtype=torch.int64), []
        for done in range(1, clusters):
            gain, start = self._extended(gain, start, done, last=done == clusters - 1)
            starts.append(start)
        ends = [whole]
        for start in reversed(starts):
            ends.append(start.gather(1, ends[-1]))
        return torch.cat([torch.zeros_like(self.row), *reversed(ends)], dim=1)

    def centroids(self, intervals: Tensor) -> Tensor:
        """Return the weighted mean of each interval, (rows, clusters)."""
        first, weight = self.first.gather(1, intervals), self.weight.gather(1, intervals)
        return first.diff(dim=1) / weight.diff(dim=1)

    def _extended(
        self, gain: Tensor, before: Tensor, done: int, *, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the gains with one interval more, and where that one starts.

        Args:
            gain: (rows, n + 1) fp64, what the first j numbers gain in ``done`` intervals.
            before: (rows, n + 1) int64, where the last of those starts, which is never later.
            done: Number of intervals so far.
            last: Whether only all n numbers count, no further interval being asked for.
        """
        found, start = torch.full_like(gain, -torch.inf), torch.full_like(before, done)
        stride = 1 << self.count.bit_length()
        while stride > 1:
            half = stride // 2
            ends = torch.arange(half, self.count + 1, stride, device=gain.device)
            if last:
                ends, half = ends.new_tensor([self.count]), self.count
            ends = ends[ends > done]
            if len(ends):
                low = torch.maximum(start[:, ends - half], before[:, ends])
                above = start[:, (ends + half).clamp(max=self.count)]
                high = torch.where(ends + half > self.count, ends - 1, above)
                best = self._searched(gain, ends, low, torch.minimum(high, ends - 1))
                found[:, ends], start[:, ends] = best
            stride = 0 if last else half
        return found, start

    def _searched(
        self, gain: Tensor, ends: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the best gain of each end (m,) over starts in [low, high], and the first such."""
        lengths = (high - low + 1).flatten()
        owner = torch.arange(len(lengths), device=gain.device).repeat_interleave(lengths)
        shift = (self.row + low).flatten() - lengths.cumsum(0) + lengths
        place = _taken(shift, owner) + torch.arange(len(owner), device=gain.device)
        moment = _taken(self.first[:, ends], owner).sub_(_taken(self.first, place))
        mass = _taken(self.weight[:, ends], owner).sub_(_taken(self.weight, place))
        value = moment.square_().div_(mass).add_(_taken(gain, place))
        best = torch.segment_reduce(value, "max", lengths=lengths)
        hits = (value == _taken(best, owner)).nonzero().squeeze(1)
        first = torch.full_like(lengths, self.first.numel())
        first.scatter_reduce_(0, _taken(owner, hits), _taken(place, hits), "amin")
        return best.view(low.shape), first.view(low.shape) - self.row


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Return the values (m,) at flat indices (m,); faster than indexing with brackets."""
    return values.reshape(-1).index_select(0, index)
