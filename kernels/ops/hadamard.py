"""The orthonormal Hadamard transform of each row, in ``n log n`` additions."""

import torch
from torch import Tensor

from autocomp.kernels._op import operation
from autocomp.kernels._triton import (
    cdiv,
    jit,
    launch,
    options_of,
    tl,
    triton_backend,
)

MOST_COLUMNS = 1 << 15
"""Columns of a transform that a program keeps in registers."""


@operation
def hadamard(inputs: Tensor) -> Tensor:
    """Transform each row: ``y = H x``, ``H = [[1, 1], [1, −1]]^⊗k / √n``, ``n = 2^k``.

    Sums are fp32, fp64 where the inputs are. The transform is its own inverse.

    Args:
        inputs: x (rows, n) of a floating dtype; n is a power of two.

    Returns:
        (rows, n) in the dtype of the inputs.

    Raises:
        ValueError: If n is not a power of two.
    """
    count, width = inputs.shape
    if width & (width - 1) or not width:
        raise ValueError(f"a Hadamard transform takes a power of two of inputs, got {width}.")
    found = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    half = 1
    while half < width:
        left, right = found.view(count, -1, 2, half).unbind(dim=2)
        found = torch.stack([left + right, left - right], dim=2).view(count, width)
        half *= 2
    return (found * width**-0.5).to(inputs.dtype)


@hadamard.operator
def _shape(inputs: Tensor) -> Tensor:
    return torch.empty_like(inputs)


@jit
def _rows_kernel(
    inputs: tl.tensor,
    outputs: tl.tensor,
    rows: int,
    WIDTH: tl.constexpr,
    LOG: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """Whole rows: each stage adds and subtracts neighbours, and puts the pairs in two halves.

    After as many stages as the index has bits every bit has been the lowest once, and all are
    back in their order.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    place = m[:, None].to(tl.int64) * WIDTH + tl.arange(0, WIDTH)[None, :]
    keep = (m < rows)[:, None]
    value = tl.load(inputs + place, mask=keep, other=0.0).to(tl.float32)
    for _ in tl.static_range(LOG):
        left, right = tl.split(tl.reshape(value, (BLOCK_M, WIDTH // 2, 2)))
        pairs = tl.join(left + right, left - right)
        value = tl.reshape(tl.permute(pairs, (0, 2, 1)), (BLOCK_M, WIDTH))
    tl.store(outputs + place, (value * FACTOR).to(outputs.dtype.element_ty), mask=keep)


def _too_wide(inputs: Tensor) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    width = inputs.shape[1]
    if not inputs.is_contiguous() or not inputs.numel():
        return "takes contiguous rows, at least one"
    if width & (width - 1) or not 2 <= width <= MOST_COLUMNS:
        return f"takes a power of two of inputs, 2 to {MOST_COLUMNS}, got {width}"
    return None


@triton_backend(hadamard, rule=f"contiguous, 2 to {MOST_COLUMNS} inputs", check=_too_wide)
def _triton(inputs: Tensor) -> Tensor:
    """Keep rows in registers through all stages."""
    rows, width = inputs.shape
    outputs = torch.empty_like(inputs)
    options = options_of("hadamard", inputs.device, columns=width)
    launch(
        _rows_kernel,
        (cdiv(rows, options["BLOCK_M"]),),
        *(inputs, outputs, rows),
        **{"WIDTH": width, "LOG": width.bit_length() - 1, "FACTOR": width**-0.5},
        **options,
    )
    return outputs
