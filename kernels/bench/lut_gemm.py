"""Bench of the product with sums of signs: 2, 3 and 4 planes, groups of 128."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool, dtype: torch.dtype = torch.float16) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        group = 128 if shape.columns % 128 == 0 else shape.columns
        groups = shape.columns // group
        for rows in (1, 16) if quick else (1, 16, 512):
            inputs = values(rows, shape.columns, device=device, dtype=dtype)
            for bits in (4,) if quick else (2, 3, 4):
                yield product(
                    f"{shape.name}, {rows} rows, {bits} planes",
                    (
                        inputs,
                        codes((shape.features, bits, shape.columns), 1, device),
                        values(shape.features, groups, bits, device=device),
                        values(shape.features, groups, device=device),
                    ),
                    shape.features,
                )


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each block of rows of inputs reads the weight.

    A block of rows of the weight reads the inputs. With a table a program takes a share of one row
    of inputs; shares are written, and read to be added.
    """
    inputs, planes, scale, offset, outputs = launch.arguments[:5]
    weight = sum(t.nbytes for t in (planes, scale, offset) if t is not None)
    if "SHARE" in launch.options:
        times = 1 if launch.grid[1] == 1 else 2
        return int(weight + inputs.nbytes * launch.grid[0] + outputs.nbytes * times)
    return int(weight * launch.grid[0] + inputs.nbytes * launch.grid[1] + outputs.nbytes)
