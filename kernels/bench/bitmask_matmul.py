"""Bench of the product with masked weights: half kept, floating and on a 4-bit grid."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        count = shape.features * shape.columns // 2
        # Every second weight: random masks keep other numbers of weights than there are values.
        mask = torch.full((shape.features, -(-shape.columns // 8)), 0x55, device=device)
        starts = torch.arange(shape.features + 1, device=device) * (shape.columns // 2)
        group = 128 if shape.columns % 128 == 0 else shape.columns
        scale = values(shape.features, shape.columns // group, device=device).abs() / 100
        for rows in (1, 16) if quick else (1, 16, 512):
            inputs = values(rows, shape.columns, device=device, dtype=dtype)
            for bits in (0, 4):
                kept = codes((count,), 4, device) if bits else values(count, device=device)
                yield product(
                    f"{shape.name}, {rows} rows, half kept, {f'{bits} bits' if bits else 'fp16'}",
                    (
                        *(inputs, mask.to(torch.uint8), kept),
                        *(scale if bits else None, None, bits, starts),
                    ),
                    shape.features,
                )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each block of rows of inputs reads the weight.

    A block of rows of the weight reads the inputs.
    """
    inputs, mask, starts, kept, scale, zero, outputs = launch.arguments[:7]
    weight = sum(t.nbytes for t in (mask, starts, kept, scale, zero) if t is not None)
    return int(weight * launch.grid[0] + inputs.nbytes * launch.grid[1] + outputs.nbytes)
