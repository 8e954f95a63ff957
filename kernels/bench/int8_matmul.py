"""Bench of the product of integers: one row and many."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        for rows in (1, 16) if quick else (1, 16, 512):
            inputs = values(rows, shape.columns, device=device, dtype=dtype)
            yield product(
                f"{shape.name}, {rows} rows",
                (
                    (inputs * 40).round().clamp(-127, 127),
                    values(rows, 1, device=device, dtype=torch.float32).abs() / 127,
                    codes((shape.features, shape.columns), 8, device),
                    values(shape.features, 1, device=device).abs() / 100,
                ),
                shape.features,
            )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: a tile of codes and one of inputs at a time."""
    inputs, step, packed, scale, outputs = launch.arguments[:5]
    grid = sum(t.numel() * t.element_size() for t in (packed, scale))
    read = sum(t.numel() * t.element_size() for t in (inputs, step))
    written = outputs.numel() * outputs.element_size()
    return grid * launch.grid[0] + read * launch.grid[1] + written
