"""Bench of the product of 8-bit codes whose outlying features stay floating."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        for rows in (1, 16) if quick else (1, 16, 512):
            yield product(
                f"{shape.name}, {rows} rows",
                (
                    values(rows, shape.columns, device=device, dtype=dtype),
                    codes((shape.features, shape.columns), 8, device),
                    values(shape.features, 1, device=device),
                    6.0,
                ),
                shape.features,
            )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each block of rows of inputs reads the weight.

    A block of rows of the weight reads the codes of the inputs; without an outlier nothing else.
    """
    _, rounded, outlying, step, packed, scale, outputs = launch.arguments[:7]
    read = rounded.nbytes + outlying.nbytes + step.nbytes
    weight = packed.nbytes + scale.nbytes
    return int(weight * launch.grid[0] + read * launch.grid[1] + outputs.nbytes)
