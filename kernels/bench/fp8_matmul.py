"""Bench of the product with 8-bit floats: a scale a row, and inputs of 8 bits (W8A8)."""

from collections.abc import Iterator

import torch
from _case import FEW, SHAPES, Case, product, values
from fp4_matmul import traffic

__all__ = ["cases", "traffic"]


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Iterate over decode (1 and 16 rows) and prefill (512)."""
    for shape in FEW if quick else SHAPES:
        weight = values(shape.features, shape.columns, device=device).to(torch.float8_e4m3fn)
        scale = values(shape.features, 1, device=device).abs() / 10
        for rows in (1, 16) if quick else (1, 16, 512):
            inputs = values(rows, shape.columns, device=device)
            step = values(rows, 1, device=device, dtype=torch.float32).abs()
            eight = inputs.to(torch.float8_e4m3fn).to(inputs.dtype)
            for kind, arguments in (
                ("inputs of 16 bits", (inputs, None, weight, scale, None)),
                ("inputs of 8 bits", (eight, step, weight, scale, None)),
            ):
                yield product(f"{shape.name}, {rows} rows, {kind}", arguments, shape.features)
