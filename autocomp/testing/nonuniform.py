"""Examples of the formats beyond one uniform grid a weight, for the format contract.

Each maker yields weights with what they must decode to, worked out without the format's own code.
Numbers are small multiples of powers of two where sums have to be exact.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from autocomp.formats.affine import Affine
from autocomp.formats.base import CompressedWeight
from autocomp.formats.bcq import Bcq
from autocomp.formats.bilevel import Bilevel, Statistic
from autocomp.formats.bypass import Bypass
from autocomp.formats.codebook import Codebook
from autocomp.formats.columns import Columns
from autocomp.formats.dense import Dense
from autocomp.formats.float import SCALES, Float
from autocomp.formats.float_input import RoundFloatInput
from autocomp.formats.midrise import Midrise
from autocomp.formats.normal_float import NormalFloat
from autocomp.formats.outliers import Outliers
from autocomp.formats.prepared import Prepared
from autocomp.formats.steps import Rotation
from autocomp.formats.turned import Turned
from autocomp.formats.uniform_tensor import UniformTensor
from autocomp.kernels.bits import unpack_bits

SHAPES = ((7, 24), (1, 24), (16, 48))

Pairs = Iterator[tuple[CompressedWeight, Tensor]]


def _sixteenths(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return distinct numbers along the last axis, (…, n) fp32, whole sixteenths."""
    order = torch.rand((*shape[:-1], 512), generator=generator).argsort(dim=-1)
    return (order[..., : shape[-1]].float() - 256) / 16


def _codebook(generator: Generator) -> Pairs:
    for shape in SHAPES:
        for bits in (1, 2, 3, 4, 8):
            book = _sixteenths((shape[0], 1 << bits), generator)
            codes = torch.randint(0, 1 << bits, shape, generator=generator)
            dense = torch.stack([row[code] for row, code in zip(book, codes, strict=True)])
            yield Codebook(shape, bits).pack(codes, book), dense


def _uniform_tensor(generator: Generator) -> Pairs:
    for shape in SHAPES:
        for bits in (2, 3, 4, 8):
            codes = torch.randint(0, 1 << bits, shape, generator=generator)
            zero = torch.randint(0, 1 << bits, (1, 1), generator=generator)
            scale = torch.rand((1, 1), generator=generator).half() + 0.01
            dense = (codes - zero) * scale.float()
            yield UniformTensor(shape, bits).pack(codes, scale, zero), dense


def _bcq(generator: Generator) -> Pairs:
    for shape in SHAPES:
        for bits, group, offset in (
            (1, None, None),
            (2, 8, "float16"),
            (3, 24, "float32"),
            (5, 12, None),
        ):
            layout = Bcq(shape, bits, group, offset)
            size = group or shape[1]
            scale = torch.rand((shape[0], layout.groups, bits), generator=generator) + 0.5
            scale = (scale * 64).round() / 64 * 2.0 ** torch.arange(bits)
            shift = _sixteenths((shape[0], layout.groups), generator)
            codes = torch.randint(0, 1 << bits, shape, generator=generator)
            dense = torch.zeros(shape)
            for plane in range(bits):
                sign = (codes // 2**plane % 2 * 2 - 1).float()
                dense += sign * scale[..., plane].repeat_interleave(size, dim=1)
            if offset is not None:
                dense += shift.repeat_interleave(size, dim=1)
            yield layout.pack(codes, scale, shift), dense


def _normal_float(generator: Generator) -> Pairs:
    """The levels and magnitudes are read where they are stored; only how they join is redone."""
    for shape in SHAPES:
        for bits, block, double in ((4, 64, True), (4, 64, False), (3, 24, True), (2, 7, False)):
            layout = NormalFloat(shape, bits, block, double)
            stored = layout.quantize(torch.randn(shape, generator=generator))
            count = shape[0] * shape[1]
            levels = layout.levels
            codes = unpack_bits(stored.tensors["codes"], bits, count)[0].long()
            sizes = layout.magnitudes(stored.tensors).repeat_interleave(block)[:count]
            yield stored, (levels[codes] * sizes).view(shape)


def _affine(generator: Generator) -> Pairs:
    for shape in SHAPES:
        for bits, group in ((2, 8), (3, None), (4, 12), (8, 24)):
            layout, size = Affine(shape, bits, group), group or shape[1]
            sides = shape[0], shape[1] // size
            scale = (torch.rand(sides, generator=generator) * 64 + 1).round() / 64
            zero = (torch.rand(sides, generator=generator) * 64 * (2**bits - 1)).round() / 64
            codes = torch.randint(0, 1 << bits, shape, generator=generator)
            step, shift = (side.repeat_interleave(size, dim=1) for side in (scale, zero))
            yield layout.pack(codes, scale, zero), (codes - shift.half().float()) * step


def _midrise(generator: Generator) -> Pairs:
    for shape in SHAPES:
        for bits in (2, 3, 8):
            scale = (torch.rand((shape[0], 1), generator=generator) * 64 + 1).round() / 64
            codes = torch.randint(0, 1 << bits, shape, generator=generator)
            middle = (2**bits - 1) / 2
            yield Midrise(shape, bits).pack(codes, scale), (codes - middle) * scale
        one = Midrise(shape, 3, single=True).pack(codes % 8, scale[:1])
        yield one, (codes % 8 - 3.5) * scale[:1]


def _float(generator: Generator) -> Pairs:
    """Numbers are drawn as sign, exponent and mantissa; scales are worked out apart."""
    for shape in SHAPES:
        for code, exponents, mantissas in (("e2m1", 4, 2), ("e4m3", 15, 8), ("e5m2", 31, 4)):
            for group, scales in zip((8, None, 12), SCALES, strict=True):
                layout, size = Float(shape, code, group, scales), group or shape[1]
                exponent = torch.randint(0, exponents, shape, generator=generator)
                mantissa = torch.randint(0, mantissas, shape, generator=generator) / mantissas
                sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
                power = 2.0 ** (exponent.clamp(min=1) - layout.numbers.bias)
                points = sign * power * (mantissa + (exponent > 0))
                sides = shape[0], shape[1] // size
                byte = torch.randint(110, 140, sides, generator=generator).to(torch.uint8)
                real = (torch.rand(sides, generator=generator) + 0.01).half()
                base = (torch.rand((shape[0], 1), generator=generator) + 0.01).half()
                stored = {"scale": real if scales == "real" else byte}
                step = real.float() if scales == "real" else 2.0 ** (byte.float() - 127)
                if scales == "relative":
                    stored["base"], step = base, step * base
                dense = points * step.repeat_interleave(size, dim=1)
                yield layout.pack(dense, stored), dense


def rounded_floats(generator: Generator) -> Pairs:
    """Inputs of 4 and 8 bits, floating, before weights of such codes and before a dense one."""
    weight = _sixteenths((7, 24), generator)
    for inner, dense in (*_float(generator), (Dense((7, 24), "float16").pack(weight), weight)):
        for bits in (4, 8):
            shape = inner.layout.shape
            layout = Prepared(shape, inner.layout, None, RoundFloatInput(shape[1], bits))
            yield layout.pack(inner), dense


def input_error(weight: CompressedWeight, rounded: Tensor) -> Tensor | float:
    """Return how much rounding the inputs may change outputs: half a step of each input."""
    rounding = getattr(weight.layout, "activation", None)
    if rounding is None:
        return 0.0
    size = weight.operands().weight.abs()
    if isinstance(rounding, RoundFloatInput):
        points, unit = rounding.points(rounded)
        power = points.abs().clamp_min(2.0 ** (1 - rounding.numbers.bias))
        return unit * power * 2.0 ** -(1 + rounding.numbers.mantissa_bits) @ size.T
    by_token = rounded.abs().amax(dim=-1, keepdim=True) / rounding.largest
    step = weight.tensors.get("activation.scale", by_token)
    return step / 2 * size.sum(dim=1)


def _turned(generator: Generator) -> Pairs:
    """Of so many rows that a Hadamard matrix of them is exact."""
    for shape in ((16, 24), (16, 7)):
        layout = Turned(shape, Midrise(shape, 2, single=True), Rotation(shape[0], "hadamard", 1))
        codes = torch.randint(0, 4, shape, generator=generator)
        inner = Midrise(shape, 2, single=True).pack(codes, torch.full((1, 1), 0.5))
        back = layout.output.apply(torch.eye(shape[0]), {})  # a row is what U makes of a unit
        yield layout.pack(inner), back @ ((codes - 1.5) * 0.5)


def _columns(generator: Generator) -> Pairs:
    for shape in SHAPES:
        for count in (3, shape[1]):
            mask = torch.rand(shape[1], generator=generator).argsort() < count
            dense = torch.randint(1, 128, shape, generator=generator).float() / 64
            yield Columns(shape, count).pack(mask, dense), dense * mask


def _bypass(generator: Generator) -> Pairs:
    for shape in SHAPES:
        yield Bypass(shape).pack(), torch.zeros(shape)


def _bilevel(generator: Generator) -> Pairs:
    """Scales and zero points whose grids are powers of two, so that decoding them is exact."""
    for shape, bits, size, coarse, band in (((7, 24), 3, 8, 3, 4), ((16, 48), 4, 6, 2, 16)):
        layout, sides, values = Bilevel(shape, bits, size, coarse, band), [], []
        for low, step in ((0.25, 0.125), (0.0, 2.0 ** (bits - coarse))):
            codes = torch.randint(
                0, 1 << coarse, (shape[0], shape[1] // size), generator=generator
            )
            grid = torch.ones((-(-shape[0] // band), codes.shape[1]), dtype=torch.float16)
            sides.append(Statistic(codes.to(torch.uint8), low * grid, step * grid))
            values.append((low + step * codes).repeat_interleave(size, dim=1))
        codes = torch.randint(0, 1 << bits, shape, generator=generator)
        yield layout.pack(codes, *sides), values[0] * (codes - values[1])


def _outliers(generator: Generator) -> Pairs:
    for shape in SHAPES:
        for share in (0.2, 1.0):
            mask = torch.rand(shape, generator=generator) < share
            dense = torch.randint(-128, 128, shape, generator=generator).float() / 64
            layout = Outliers(shape, int(mask.sum()))
            yield layout.pack(mask, dense), torch.where(mask, dense, 0.0)


MAKERS: dict[str, Callable[[Generator], Pairs]] = {
    "uniform_tensor": _uniform_tensor,
    "codebook": _codebook,
    "bcq": _bcq,
    "bilevel": _bilevel,
    "outliers": _outliers,
    "affine": _affine,
    "midrise": _midrise,
    "float": _float,
    "turned": _turned,
    "columns": _columns,
    "bypass": _bypass,
    "normal_float": _normal_float,
}
