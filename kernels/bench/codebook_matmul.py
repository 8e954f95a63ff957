"""Bench of the product with codebooks: of each row, 3 and 4 bits, and of all rows with scales."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        scale = values(shape.features, shape.columns // 64, device=device, dtype=torch.float32)
        for rows in (1, 16) if quick else (1, 16, 512):
            inputs = values(rows, shape.columns, device=device, dtype=dtype)
            for bits, shared in ((3, False), (4, False), (4, True)):
                levels = values(1 if shared else shape.features, 1 << bits, device=device)
                packed = codes((shape.features, shape.columns), bits, device)
                yield product(
                    f"{shape.name}, {rows} rows, {'nf4' if shared else f'{bits} bits a row'}",
                    (inputs, packed, levels, scale if shared else None, bits),
                    shape.features,
                )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each block of rows of inputs reads the weight.

    A block of rows of the weight reads the inputs.
    """
    inputs, packed, levels, scale, outputs = launch.arguments[:5]
    weight = sum(t.nbytes for t in (packed, levels, scale) if t is not None)
    return int(weight * launch.grid[0] + inputs.nbytes * launch.grid[1] + outputs.nbytes)
