"""Attention sinks: the few tokens whose hidden state is many times longer than all others'.

They break what a second moment over all tokens assumes: one such token may hold most of ``H``
while its loss gradient is close to nothing.

Reference: Sun et al. 2024, https://arxiv.org/abs/2402.17762
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocomp.models.device import bf16_products

SINK_RATIO = 4.0
"""A hidden state this many times longer than the median is an outlier.

Others lie within a factor of two of the median. A massive activation, a thousand times the median
magnitude in one channel, makes its token at least 6 times longer than others up to a width of
12,288: 1000 / (1.48 · sqrt(width)).
"""


@dataclass(frozen=True, slots=True)
class SinkStatistics:
    """Statistics of a linear with the sinks apart, all fp32.

    Args:
        tokens: Number of tokens seen, the sinks included.
        inputs: (m, in) inputs of all m sinks.
        gradients: (m, out) output gradients of the same tokens.
        hessian: (in, in), ``E[x xᵀ]`` over the other tokens.
        fisher: (out, out), ``E[g gᵀ]`` over the other tokens.
        sampled: (n,) bool, which of the sampled tokens are sinks.
    """

    tokens: int
    inputs: Tensor
    gradients: Tensor
    hessian: Tensor
    fisher: Tensor
    sampled: Tensor

    @property
    def others(self) -> float:
        """Share of the tokens that are no sinks."""
        return 1 - len(self.inputs) / self.tokens


def sink_masks(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
    """Return which tokens are sinks of a block.

    A token is one when it is the first of its window, or when its hidden state is more than
    ``SINK_RATIO`` times as long as the median of all tokens where it enters the block, or where
    it leaves it: the block that makes or removes a massive activation sees it on one side only.

    Args:
        before: Norms of the block's inputs, (windows, length) a batch.
        after: Norms of its outputs.

    Returns:
        (windows · length,) bool, one a batch.
    """
    limits = [
        SINK_RATIO * torch.cat([norms.flatten() for norms in side]).median()
        for side in (before, after)
    ]
    masks = []
    for entering, leaving in zip(before, after, strict=True):
        mask = (entering > limits[0]) | (leaving > limits[1])
        mask[:, 0] = True
        masks.append(mask.flatten())
    return masks


class Apart:
    """The rows of sinks, and the second moment of all other rows."""

    def __init__(self) -> None:
        self.tokens = 0
        self._rows: list[Tensor] = []
        self._moment: Tensor | None = None

    def add(self, rows: Tensor, sinks: Tensor) -> None:
        """Take (tokens, width) rows in their own dtype and which of them are sinks, (tokens,)."""
        dtype, rows = rows.dtype, rows.float()
        if self._moment is None:
            self._moment = rows.new_zeros(rows.shape[1], rows.shape[1])
        self._rows.append(rows[sinks])
        others = rows[~sinks]
        with bf16_products(dtype):
            self._moment.addmm_(others.T, others)
        self.tokens += len(rows)

    @property
    def rows(self) -> Tensor:
        """Rows of the sinks, (m, width) fp32."""
        return torch.cat(self._rows)

    @property
    def moment(self) -> Tensor:
        """Mean over the other tokens, (width, width) fp32."""
        assert self._moment is not None
        return self._moment / max(1, self.tokens - len(self.rows))
