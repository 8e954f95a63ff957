"""Inputs to whole numbers, each row by its own largest magnitude."""

import torch
from torch import Tensor

from autocomp.kernels._op import operation
from autocomp.kernels._triton import (
    cdiv,
    jit,
    launch,
    options_of,
    power_of_two,
    tl,
    triton_backend,
)

SMALLEST_ABSMAX = 1e-5
"""What the largest magnitude of a row counts as when it is less."""

MOST_COLUMNS = 1 << 16
"""Columns that a program keeps in registers."""


@operation
def quantize_activations(inputs: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round each row to whole numbers: ``p = round(x / t)``, ``t = max |x| / (2^(b−1) − 1)``.

    Halves go to the even number. Computed in fp32.

    Args:
        inputs: x (rows, in) of a floating dtype.
        bits: b, 2 to 8.

    Returns:
        Codes (rows, in) in the dtype of the inputs, which holds them exactly, and t (rows, 1)
        fp32.
    """
    largest = (1 << (bits - 1)) - 1
    values = inputs.float()
    step = values.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST_ABSMAX) / largest
    codes = torch.round(values / step).clamp_(-largest, largest)
    return codes.to(inputs.dtype), step


@quantize_activations.operator
def _shape(inputs: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    step = inputs.new_empty((inputs.shape[0], 1), dtype=torch.float32)
    return torch.empty_like(inputs), step


@jit
def _rows_kernel(
    inputs: tl.tensor,
    codes: tl.tensor,
    step: tl.tensor,
    rows: int,
    columns: int,
    LARGEST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Whole rows at a time: read once, written once."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_K)
    keep = (m < rows)[:, None] & (column < columns)[None, :]
    place = m[:, None].to(tl.int64) * columns + column[None, :]
    value = tl.load(inputs + place, mask=keep, other=0.0).to(tl.float32)
    absmax = tl.maximum(tl.max(tl.abs(value), axis=1), 1e-5)
    unit = tl.div_rn(absmax, tl.full((BLOCK_M,), LARGEST, dtype=tl.float32))
    ratio = tl.div_rn(value, tl.broadcast_to(unit[:, None], (BLOCK_M, BLOCK_K)))
    # Adding 1.5 · 2^23 leaves no bits for a fraction: fp32 rounds to nearest, halves to even.
    code = (ratio + 12582912.0) - 12582912.0
    code = tl.minimum(tl.maximum(code, -LARGEST), LARGEST)
    tl.store(codes + place, code.to(codes.dtype.element_ty), mask=keep)
    tl.store(step + m, unit, mask=m < rows)


def _not_whole_rows(inputs: Tensor, bits: int) -> str | None:
    """Return why the Triton kernel does not take these arguments."""
    if not inputs.is_contiguous() or inputs.shape[1] > MOST_COLUMNS:
        return f"takes contiguous rows of at most {MOST_COLUMNS} inputs"
    return None if inputs.numel() else "takes at least one row"


@triton_backend(
    quantize_activations,
    rule=f"contiguous, at most {MOST_COLUMNS} inputs",
    check=_not_whole_rows,
)
def _triton(inputs: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Keep rows in registers between their largest magnitude and their codes."""
    rows, columns = inputs.shape
    codes = torch.empty_like(inputs)
    step = inputs.new_empty((rows, 1), dtype=torch.float32)
    options = options_of("quantize_activations", inputs.device, columns=columns)
    launch(
        _rows_kernel,
        (cdiv(rows, options["BLOCK_M"]),),
        *(inputs, codes, step, rows, columns),
        **{"LARGEST": (1 << (bits - 1)) - 1, "BLOCK_K": power_of_two(columns)},
        **options,
    )
    return codes, step
