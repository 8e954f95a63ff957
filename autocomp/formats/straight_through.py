"""Rounding that gradients pass as if it were not there."""

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """The identity's gradient for the first argument, none for the second."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, rounded: Tensor, keep: Tensor | None) -> Tensor:
        ctx.save_for_backward(keep)
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (keep,) = gradients, ctx.saved_tensors
        return gradient if keep is None else gradient * keep, None, None


def straight_through(exact: Tensor, rounded: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return ``rounded`` with the gradient of ``exact`` (of ``exact · keep`` given a mask).

    Reference: Bengio et al. 2013, https://arxiv.org/abs/1308.3432

    Args:
        exact: Any shape; what is trained, or follows from it.
        rounded: The same shape and dtype.
        keep: The same shape, bool; what is not kept gets no gradient.
    """
    found: Tensor = _StraightThrough.apply(exact, rounded.detach(), keep)  # type: ignore[no-untyped-call]
    return found
