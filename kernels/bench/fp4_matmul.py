"""Bench of the product with E2M1 codes: groups of 64, MXFP4, and inputs of 8 bits (W4A8)."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, codes, product, values

from autocomp.kernels._triton import Launch


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        packed = codes((shape.features, shape.columns), 4, device)
        for rows in (1, 16) if quick else (1, 16, 512):
            inputs = values(rows, shape.columns, device=device)
            step = values(rows, 1, device=device, dtype=torch.float32).abs()
            eight = inputs.to(torch.float8_e4m3fn).to(inputs.dtype)
            scale = values(shape.features, shape.columns // 64, device=device).abs() / 10
            powers = torch.full(
                (shape.features, shape.columns // 32), 124, dtype=torch.uint8, device=device
            )
            for kind, arguments in (
                ("groups of 64", (inputs, None, packed, scale, None)),
                ("mxfp4", (inputs, None, packed, powers, None)),
                ("inputs of 8 bits", (eight, step, packed, scale, None)),
            ):
                yield product(f"{shape.name}, {rows} rows, {kind}", arguments, shape.features)


def traffic(launch: Launch) -> int:
    """Return the bytes that all programs ask for: each block of rows of inputs reads the weight.

    A block of rows of the weight reads the inputs. One row of inputs is cut in shares, each of
    which reads its own part of both.
    """
    inputs, step, packed, scale, _, outputs = launch.arguments[:6]
    read = inputs.nbytes + (0 if step is None else step.nbytes)
    if "SHARE" in launch.options:
        return int(packed.nbytes + scale.nbytes + read * launch.grid[0] + outputs.nbytes)
    weight = (packed.nbytes + scale.nbytes) * launch.grid[0]
    return int(weight + read * launch.grid[1] + outputs.nbytes)
