"""Bench of the product with packed weights: bits, groups, one row and many."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode (1, 4 and 16 rows) and prefill (512), all bits at one shape."""
    for shape in FEW if quick else SHAPES:
        wide = shape.name == "llama-3-8b gate"
        for bits in (2, 3, 4, 5, 6, 8) if wide else (4,):
            for rows in (1, 4, 16, 512) if bits == 4 and not quick else (1, 16):
                group = 128 if shape.columns % 128 == 0 else shape.columns
                groups = shape.columns // group
                zero = codes((shape.features, groups), bits, device) if bits != 8 else None
                yield product(
                    f"{shape.name}, {rows} rows, {bits} bits, groups of {group}",
                    (
                        values(rows, shape.columns, device=device, dtype=dtype),
                        codes((shape.features, shape.columns), bits, device),
                        values(shape.features, groups, device=device).abs() / 100,
                        zero,
                        bits,
                    ),
                    shape.features,
                )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for.

    Each reads its codes and its grid once, its part of the inputs, and writes its outputs. A
    program of one row of inputs holds them for all its rows of codes.
    """
    inputs, packed, scale, zero, outputs = launch.arguments[:5]
    grid = sum(t.numel() * t.element_size() for t in (packed, scale, zero) if t is not None)
    read = inputs.numel() * inputs.element_size()
    written = outputs.numel() * outputs.element_size()
    if "SHARE" in launch.options:
        return grid + read * launch.grid[0] + written
    return grid * launch.grid[0] + read * launch.grid[1] + written
