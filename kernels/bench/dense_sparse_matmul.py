"""Bench of the product with a packed weight and sparse values: 4 bits, 0.5 % of the weights."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch
from autocomp.kernels.low_rank_matmul import Packed


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        group = 128 if shape.columns % 128 == 0 else shape.columns
        packed = codes((shape.features, shape.columns), 4, device)
        scale = values(shape.features, shape.columns // group, device=device)
        each = shape.columns // 200
        count = shape.features * each
        columns = torch.arange(count, device=device) * 37 % shape.columns
        columns = columns.to(torch.int16 if shape.columns <= 1 << 15 else torch.int32)
        starts = torch.arange(0, count + 1, each, device=device, dtype=torch.int32)
        for rows in (1, 16) if quick else (1, 16, 512):
            inputs = values(rows, shape.columns, device=device, dtype=dtype)
            for base in (Packed(packed, scale, None, 4), None):
                beside = "alone" if base is None else "and 4 bits"
                yield product(
                    f"{shape.name}, {rows} rows, 0.5 % {beside}",
                    (inputs, base, values(count, device=device), columns, starts),
                    shape.features,
                    *(() if base is None else (packed, scale)),
                )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each block of rows of inputs reads the weight.

    A block of rows of the weight reads the inputs.
    """
    inputs, *weight, outputs = launch.arguments[:8]
    moved = sum(t.nbytes for t in weight if t is not None)
    return int(moved * launch.grid[0] + inputs.nbytes * launch.grid[1] + outputs.nbytes)
