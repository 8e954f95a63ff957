"""Bench of the rounding of inputs: one row and many."""

from collections.abc import Iterator

import torch
from _case import Case, nbytes, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over widths of real models, decode and prefill."""
    for columns in (576, 4096) if quick else (576, 3584, 4096, 14336):
        for rows in (1, 16) if quick else (1, 16, 2048):
            inputs = values(rows, columns, device=device, dtype=dtype)
            yield Case(
                f"{columns} inputs, {rows} rows", (inputs, 8), 2 * nbytes(inputs) + 4 * rows
            )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each element is read and written once."""
    return nbytes(*launch.arguments[:3])
