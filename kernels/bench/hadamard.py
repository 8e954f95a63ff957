"""Bench of the Hadamard transform: one row and many."""

from collections.abc import Iterator

import torch
from _case import Case, nbytes, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over widths, decode and prefill."""
    for columns in (512, 4096) if quick else (512, 1024, 4096, 8192):
        for rows in (1, 16) if quick else (1, 16, 2048):
            inputs = values(rows, columns, device=device, dtype=dtype)
            yield Case(f"{columns} inputs, {rows} rows", (inputs,), 2 * nbytes(inputs))


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each element is read and written once."""
    return nbytes(*launch.arguments[:2])
