"""What operations on non-uniform, masked and mixed weights and caches are tried on.

``MAKERS`` belongs to the contract of :mod:`autocomp.testing.kernels`, which says what a case is.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from autocomp.kernels.bits import pack_bits
from autocomp.kernels.float_codes import CODES, float_weight
from autocomp.kernels.kv_attention import Stored
from autocomp.kernels.low_rank_matmul import Packed

SHAPES = ((64, 64), (1, 128), (40, 100), (123, 123))
ROWS = (1, 5, 17)


class Case(NamedTuple):
    """Arguments of an operation, and the sum of magnitudes of each output; ``None``: exact."""

    arguments: tuple[Any, ...]
    size: Tensor | None = None


Cases = Iterator[Case]


def _inputs(rows: int, columns: int, dtype: torch.dtype, generator: Generator) -> Tensor:
    """Return random inputs (rows, columns)."""
    return torch.randn(rows, columns, generator=generator).to(dtype)


def _codebook(dtype: torch.dtype, generator: Generator) -> Cases:
    """A codebook of each row without scales, and one of all rows with a scale a group."""
    for shape in SHAPES:
        for bits, shared in ((3, False), (4, True), (8, False)):
            codes = torch.randint(0, 1 << bits, shape, generator=generator)
            levels = torch.rand(1 if shared else shape[0], 1 << bits, generator=generator) - 0.5
            levels = levels if shared else levels.half()
            groups = 4 if shape[1] % 4 == 0 else 1
            scale = torch.rand(shape[0], groups, generator=generator) if shared else None
            span = torch.ones(shape) if scale is None else scale
            span = span.repeat_interleave(shape[1] // span.shape[1], dim=1) / 2
            for rows in ROWS:
                inputs = _inputs(rows, shape[1], dtype, generator)
                arguments = (inputs, pack_bits(codes, bits), levels, scale, bits)
                yield Case(arguments, inputs.float().abs() @ span.T)


def _dense_sparse(dtype: torch.dtype, generator: Generator) -> Cases:
    """Some values in rows of very different lengths, alone and beside a grid of 4 bits."""
    for shape in SHAPES:
        density = torch.rand(shape[0], 1, generator=generator) ** 3 * 0.3
        mask = torch.rand(shape, generator=generator) < density
        values = torch.randn(int(mask.sum()), generator=generator).half()
        starts = torch.nn.functional.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0)).to(torch.int32)
        places = (values, mask.nonzero()[:, 1].to(torch.int16), starts)
        dense = torch.zeros(shape).masked_scatter_(mask, values.float()).abs()
        groups = 4 if shape[1] % 4 == 0 else 1
        scale = (torch.rand(shape[0], groups, generator=generator) + 0.1).half()
        codes = pack_bits(torch.randint(0, 16, shape, generator=generator), 4)
        zero = pack_bits(torch.randint(0, 16, (shape[0], groups), generator=generator), 4)
        span = 16 * scale.float().repeat_interleave(shape[1] // groups, dim=1)
        for rows in ROWS:
            inputs = _inputs(rows, shape[1], dtype, generator)
            size = inputs.float().abs()
            yield Case((inputs, None, *places), size @ dense.T)
            yield Case((inputs, Packed(codes, scale, zero, 4), *places), size @ (dense + span).T)


def _int8_outlier(dtype: torch.dtype, generator: Generator) -> Cases:
    """No outlying feature, some, and all of them."""
    for shape in SHAPES:
        codes = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        scale = (torch.rand(shape[0], 1, generator=generator) + 0.1).half() / 128
        for rows, threshold in zip(ROWS, (6.0, 2.0, 0.0), strict=True):
            inputs = _inputs(rows, shape[1], dtype, generator)
            inputs[:, 3] *= 8 if rows > 1 else 1
            span = 128 * scale.float().expand(shape)
            yield Case((inputs, codes, scale, threshold), inputs.float().abs() @ span.T)


def _stored(shape: tuple[int, ...], bits: int, groups: int, generator: Generator) -> Stored:
    """Return random stored keys or values (…, n) within ±1."""
    codes = torch.randint(0, 1 << bits, shape, generator=generator)
    packed = pack_bits(codes.flatten(0, -2), bits).view(*shape[:-1], -1)
    step = torch.rand(*shape[:-1], groups, generator=generator) * 2 / ((1 << bits) - 1)
    return Stored(packed, step.half(), -torch.ones_like(step).half(), bits)


def _attention(dtype: torch.dtype, generator: Generator) -> Cases:
    """Caches with nothing stored, few tokens and many; heads that share keys, an odd width."""
    for heads, shared, width, keys, values, tokens in (
        (4, 2, 16, 0, 0, 5),
        (3, 3, 24, 32, 40, 57),
        (8, 2, 64, 64, 48, 70),
        (2, 1, 32, 512, 500, 520),
    ):
        for bits in (2, 4, 8):
            key = _stored((2, shared, width, keys), bits, keys // 32, generator) if keys else None
            value = _stored((2, shared, values, width), bits, 2, generator) if values else None
            latest = [
                (torch.rand(2, shared, tokens - stored, width, generator=generator) * 2 - 1)
                for stored in (keys, values)
            ]
            query = torch.randn(2, heads, width, generator=generator).to(dtype)
            # Values are within ±1; a score moves by the error of a product, which moves a weight.
            reach = query.float().abs().sum(dim=2, keepdim=True) * width**-0.5
            size = (1 + 2 * reach).expand(query.shape)
            yield Case((query, key, value, *(part.to(dtype) for part in latest)), size)


def _float(names: tuple[str, ...], dtype: torch.dtype, generator: Generator) -> Cases:
    """Scales of each kind, for any inputs and for inputs that are numbers of E4M3."""
    for shape in SHAPES:
        for groups in (1,) if shape[1] % 4 else (1, 2, 4):
            for code in (CODES[name] for name in names):
                points = code.nearest(torch.randn(shape, generator=generator) * code.largest / 4)
                sides = shape[0], groups
                unit = 2.0 ** -int(code.largest).bit_length()
                real = ((torch.rand(sides, generator=generator) + 0.1) * unit).half()
                byte = torch.randint(120, 130, sides, generator=generator).to(torch.uint8)
                base = ((torch.rand(shape[0], 1, generator=generator) + 0.1) * unit).half()
                codes = code.pack(points)
                for scale, factor in ((real, None), (byte, base)):
                    span = float_weight(codes, scale, factor, shape[1]).abs()
                    for rows in ROWS:
                        inputs = torch.randn(rows, shape[1], generator=generator)
                        size = inputs.to(dtype).float().abs() @ span.T
                        yield Case((inputs.to(dtype), None, codes, scale, factor), size)
                        eight = CODES["e4m3"].nearest(inputs * 100)
                        step = (torch.rand(rows, 1, generator=generator) + 0.5) / 100
                        size = eight.abs() @ span.T * step
                        yield Case((eight.to(dtype), step, codes, scale, factor), size)


def _float4(dtype: torch.dtype, generator: Generator) -> Cases:
    yield from _float(("e2m1",), dtype, generator)


def _float8(dtype: torch.dtype, generator: Generator) -> Cases:
    yield from _float(("e4m3", "e5m2"), dtype, generator)


MAKERS: dict[str, Callable[[torch.dtype, Generator], Cases]] = {
    "codebook_matmul": _codebook,
    "dense_sparse_matmul": _dense_sparse,
    "fp4_matmul": _float4,
    "fp8_matmul": _float8,
    "int8_outlier_matmul": _int8_outlier,
    "kv_attention": _attention,
}
