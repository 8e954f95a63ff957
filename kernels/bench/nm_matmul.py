"""Bench of the product with N:M weights: 2:4 and 4:8, floating and on a 4-bit grid."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        kept = shape.columns // 2
        group = 128 if shape.columns % 128 == 0 else shape.columns
        scale = values(shape.features, shape.columns // group, device=device).abs() / 100
        for rows in (1, 16) if quick else (1, 16, 512):
            inputs = values(rows, shape.columns, device=device, dtype=dtype)
            for pattern in ((2, 4),) if quick else ((2, 4), (4, 8)):
                index = codes((shape.features, kept), pattern[1] // 4 + 1, device)
                count = shape.features * kept
                for bits in (0, 4):
                    held = codes((count,), 4, device) if bits else values(count, device=device)
                    of = f"{bits} bits" if bits else "fp16"
                    yield product(
                        f"{shape.name}, {rows} rows, {pattern[0]}:{pattern[1]}, {of}",
                        (inputs, index, pattern, held, scale if bits else None, None, bits),
                        shape.features,
                    )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each block of rows of inputs reads the weight.

    A block of rows of the weight reads the inputs.
    """
    inputs, index, held, scale, zero, outputs = launch.arguments[:6]
    weight = sum(t.nbytes for t in (index, held, scale, zero) if t is not None)
    return int(weight * launch.grid[0] + inputs.nbytes * launch.grid[1] + outputs.nbytes)
