"""The contract that every kernel operation fulfils, as functions to call from any test runner.

``arguments`` gives what an operation is called with, over square weights, weights of one row, rows
that are not a multiple of any block, 123 × 123, few and many inputs; the ``check_…`` functions
raise ``AssertionError`` on a breach. A new operation adds a function to ``_MAKERS``.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from autocomp.core.errors import UnsupportedError
from autocomp.core.registry import KERNELS
from autocomp.core.spec import BITS
from autocomp.kernels._op import REFERENCE, Backend, Operation
from autocomp.kernels._triton import INTERPRETED, interpreting
from autocomp.kernels._triton import NAME as TRITON
from autocomp.kernels.bits import pack_bits
from autocomp.kernels.int4_tile_matmul import lacks_tiles, to_offset, to_tiles
from autocomp.kernels.low_rank_matmul import Packed
from autocomp.testing.kernel_cases import MAKERS, ROWS, SHAPES, Case

INTERPRETED_STEP = 7
"""Of so many cases the interpreter takes one; prime to their rows, bits and shapes."""

EPSILON = {torch.float32: 2.0**-18, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-8}
"""Error allowed for each dtype of the inputs, relative to the sum of magnitudes of a product.

Half-precision back-ends round each scale and each output to nearest once; fp32 ones may add in
another order.
"""


def cases(name: str, dtype: torch.dtype) -> list[Case]:
    """Return what a registered operation is tried on, inputs in ``dtype``.

    Raises:
        UnsupportedError: If the operation has no cases here; add a function to ``_MAKERS``.
    """
    if name not in _MAKERS:
        raise UnsupportedError(f"operation {name!r} has no contract cases; add them to _MAKERS.")
    return list(_MAKERS[name](dtype, Generator().manual_seed(0)))


def check_registration(name: str) -> None:
    """The operation is called as it is registered, and says what it and its back-ends do."""
    found: Operation[..., Any] = KERNELS[name]
    assert isinstance(found, Operation)
    assert found.__name__ == name
    assert found.names[-1] == REFERENCE
    assert len(set(found.names)) == len(found.names)
    assert [known.priority for known in found.backends] == sorted(
        (known.priority for known in found.backends), reverse=True
    )
    assert all(known.summary.endswith((".", "!")) for known in found.backends), name


def check_backends(name: str, dtype: torch.dtype) -> None:
    """Every back-end gives what the reference does, or says why it does not run.

    The reference is given the inputs in fp32. Arguments stay as they are.
    """
    found: Operation[..., Any] = KERNELS[name]
    for case in cases(name, dtype):
        kept = [a.clone() if isinstance(a, Tensor) else a for a in case.arguments]
        expected = found.reference(*_wide(case.arguments))
        chosen = found.choose(*case.arguments)
        for known in found.backends:
            reason = known.why_not(*case.arguments)
            if reason is not None:
                assert reason.strip()
                assert chosen is not known
                _assert_refused(found, known, case.arguments)
                continue
            with found.pinned(known.name):
                assert found.choose(*case.arguments) is known
                result = found(*case.arguments)
            _assert_near(result, expected, case, dtype, f"{name} by {known.name}")
        for before, after in zip(kept, case.arguments, strict=True):
            assert not isinstance(before, Tensor) or torch.equal(before, after), "modified"


def check_triton(name: str, dtype: torch.dtype) -> None:
    """The Triton back-end gives what the reference does: on the card, or else interpreted.

    The interpreter takes a few of the cases; each is refused, with a reason, or tried.

    Raises:
        UnsupportedError: If the operation has no such back-end, or none of the cases runs.
    """
    found: Operation[..., Any] = KERNELS[name]
    device, step = ("cpu", INTERPRETED_STEP) if INTERPRETED else ("cuda", 1)
    known = next((each for each in found.backends if each.name == TRITON), None)
    tried = 0
    for case in cases(name, dtype)[::step]:
        arguments = tuple(_on(device, argument) for argument in case.arguments)
        with interpreting():
            if known is None or known.why_not(*arguments):
                continue
            with found.pinned(TRITON):
                result = found(*arguments)
        tried += 1
        expected = found.reference(*_wide(case.arguments))
        shapes = [tuple(a.shape) for a in arguments if isinstance(a, Tensor)]
        _assert_near(result, expected, case, dtype, f"{name} by {TRITON} of {shapes}")
    if not tried:
        raise UnsupportedError(f"no case of {name} in {dtype} runs by {TRITON}.")


def triton_names() -> list[str]:
    """Return the operations with a Triton back-end."""
    return [name for name, found in KERNELS.items() if TRITON in found.names]


def reached(name: str) -> set[str]:
    """Return the back-ends that some case of some dtype runs on this machine."""
    found: Operation[..., Any] = KERNELS[name]
    return {
        known.name
        for dtype in EPSILON
        for case in cases(name, dtype)
        for known in found.backends
        if known.why_not(*case.arguments) is None
    }


def _on(device: str, argument: Any) -> Any:
    """Return an argument, or a named tuple of them, on a device."""
    if isinstance(argument, Tensor):
        return argument.to(device)
    if hasattr(argument, "_fields"):
        return type(argument)(*(_on(device, each) for each in argument))
    return argument


def _wide(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments with a floating first one in fp32."""
    first = arguments[0]
    wide = first.float() if isinstance(first, Tensor) and first.is_floating_point() else first
    return (wide, *arguments[1:])


def _assert_refused(
    found: Operation[..., Any], known: Backend[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Assert that pinning a back-end that cannot run raises, with its reason."""
    message = ""
    with found.pinned(known.name):
        try:
            found(*arguments)
        except ValueError as error:
            message = str(error)
    assert str(known.why_not(*arguments)) in message, f"{known.name} ran what it cannot"


def _assert_near(result: Any, expected: Any, case: Case, dtype: torch.dtype, what: str) -> None:
    """Assert the same shape, the dtype of the inputs, and values within the tolerance.

    Several results are compared one by one; exact ones may differ in dtype from the reference,
    which was given the inputs in fp32.
    """
    if isinstance(expected, tuple):
        for part, wanted in zip(result, expected, strict=True):
            _assert_near(part, wanted, case, dtype, what)
        return
    assert result.shape == expected.shape, what
    result = result.to(expected.device)
    if case.size is None:
        assert torch.equal(result.to(expected.dtype), expected), what
        return
    assert result.dtype == dtype, what
    error = (result.float() - expected).abs()
    assert bool((error <= EPSILON[dtype] * case.size).all()), f"{what}: off by {error.max()}"


def _inputs(rows: int, columns: int, dtype: torch.dtype, generator: Generator) -> Tensor:
    """Return random inputs (rows, columns)."""
    return torch.randn(rows, columns, generator=generator).to(dtype)


def _size(inputs: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the sum of the largest magnitudes that products on a grid add up, (rows, out)."""
    width = inputs.shape[1] // scale.shape[1]
    span = scale.float().abs().repeat_interleave(width, dim=1) * (1 << bits)
    return inputs.float().abs() @ span.T


Grid = tuple[Tensor, Tensor, Tensor | None]


def _grid(
    shape: tuple[int, int], bits: int, groups: int, symmetric: bool, generator: Generator
) -> Grid:
    """Return packed codes, scale and packed zero points of a random weight."""
    codes = torch.randint(0, 1 << bits, shape, generator=generator)
    scale = (torch.rand(shape[0], groups, generator=generator) + 0.1).to(torch.float16)
    zero = torch.randint(0, 1 << bits, (shape[0], groups), generator=generator)
    return pack_bits(codes, bits), scale, None if symmetric else pack_bits(zero, bits)


def _grids(generator: Generator) -> Iterator[tuple[tuple[int, int], int, Grid]]:
    """Iterate over shapes, bits and random weights."""
    for shape in SHAPES:
        for bits in BITS:
            groups = 1 if bits == 8 else max(1, shape[1] // 32)
            groups = groups if shape[1] % groups == 0 else 1
            yield shape, bits, _grid(shape, bits, groups, bits in (3, 8), generator)
    yield (96, 64), 8, _grid((96, 64), 8, 1, False, generator)
    yield (96, 64), 8, _grid((96, 64), 8, 2, True, generator)


def _weight_only(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for shape, bits, grid in _grids(generator):
        for rows in ROWS:
            inputs = _inputs(rows, shape[1], dtype, generator)
            yield Case((inputs, *grid, bits), _size(inputs, grid[1], bits))


def _tiles(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    if lacks_tiles():
        return
    for shape, size in (((64, 64), 32), ((128, 256), 64), ((192, 128), 128), ((64, 256), 256)):
        for symmetric in (False, True):
            codes, scale, zero = _grid(shape, 4, shape[1] // size, symmetric, generator)
            for rows in ROWS:
                inputs = _inputs(rows, shape[1], dtype, generator)
                offset = None if zero is None else to_offset(zero, scale.shape[1])
                yield Case((inputs, to_tiles(codes), scale, offset), _size(inputs, scale, 4))


def _int8(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for shape in SHAPES:
        codes, scale, _ = _grid(shape, 8, 1, True, generator)
        for rows in ROWS:
            inputs = torch.randint(-127, 128, (rows, shape[1]), generator=generator).to(dtype)
            step = (torch.rand(rows, 1, generator=generator) + 0.5) / 127
            yield Case((inputs, step, codes, scale), _size(inputs, scale, 8) * step)


def _activations(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for _, columns in SHAPES:
        for rows in ROWS:
            inputs = _inputs(rows, columns, dtype, generator)
            inputs[0] = 0
            yield Case((inputs, 8 if rows > 1 else 4))


def _hadamard(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for columns in (1, 2, 64, 256):
        for rows in ROWS:
            inputs = _inputs(rows, columns, dtype, generator)
            size = inputs.float().abs().sum(dim=1, keepdim=True) * columns**-0.5
            yield Case((inputs,), size)


def _dense(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for shape in SHAPES:
        weight = _inputs(*shape, torch.float16, generator)
        for rows in ROWS:
            inputs = _inputs(rows, shape[1], dtype, generator)
            yield Case((inputs, weight), inputs.float().abs() @ weight.float().abs().T)


def _low_rank(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for shape in SHAPES:
        left = _inputs(shape[0], 7, torch.float16, generator)
        right = _inputs(7, shape[1], torch.float16, generator)
        for rows in ROWS:
            inputs = _inputs(rows, shape[1], dtype, generator)
            inner = inputs.float().abs() @ right.float().abs().T
            yield Case((inputs, left, right), inner @ left.float().abs().T)
            for bits in (4, 8):
                outer = _packed(left, bits, False, generator)
                size = _size(inputs, (packed := _packed(right, bits, True, generator)).scale, bits)
                yield Case((inputs, outer, packed), _size(size, outer.scale, bits))
                yield Case((inputs, outer, right), _size(inner, outer.scale, bits))


def _packed(like: Tensor, bits: int, symmetric: bool, generator: Generator) -> Packed:
    """Return a random packed factor of a shape, with values of about ± 1."""
    codes, scale, zero = _grid((like.shape[0], like.shape[1]), bits, 1, symmetric, generator)
    return Packed(codes, scale / 2**bits, zero, bits)


def _sparse(dtype: torch.dtype, generator: Generator, pattern: tuple[int, int] | None) -> Any:
    """Yield cases of one bit a weight, or of a pattern; values floating and on a grid."""
    for shape in SHAPES if pattern is None else ((64, 64), (1, 128), (40, 100)):
        order = torch.rand(shape, generator=generator)
        if pattern is None:
            mask = order < 0.4
            places: tuple[Any, ...] = (pack_bits(mask.to(torch.uint8), 1),)
        else:
            keep, m = pattern
            ranks = order.view(shape[0], -1, m).argsort(dim=2)
            mask = (ranks < keep).view(shape)
            index = mask.view(shape[0], -1, m).nonzero()[:, 2].view(shape[0], -1)
            places = (pack_bits(index, (m - 1).bit_length()), pattern)
        count = int(mask.sum())
        _, scale, zero = _grid(shape, 4, 1, False, generator)
        codes = pack_bits(torch.randint(0, 16, (1, count), generator=generator), 4)[0]
        values = _inputs(1, count, torch.float16, generator)[0]
        ones = torch.ones_like(scale)
        for rows in ROWS:
            inputs = _inputs(rows, shape[1], dtype, generator)
            yield Case((inputs, *places, codes, scale, zero, 4), _size(inputs, scale, 4))
            yield Case((inputs, *places, values, None, None, 0), _size(inputs, ones, 3))


def _bitmask(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    yield from _sparse(dtype, generator, None)


def _nm(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for pattern in ((2, 4), (3, 4)):
        yield from _sparse(dtype, generator, pattern)


def _lut(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for shape in SHAPES:
        groups = 1 if shape[1] % 16 else shape[1] // 16
        bits = 3
        planes = torch.randint(0, 256, (shape[0], bits, -(-shape[1] // 8)), generator=generator)
        scale = (torch.rand(shape[0], groups, bits, generator=generator) + 0.1).half()
        offset = torch.randn(shape[0], groups, generator=generator).half()
        span = scale.float().sum(dim=2) + offset.float().abs()
        span = span.repeat_interleave(shape[1] // groups, dim=1)
        for rows in ROWS:
            inputs = _inputs(rows, shape[1], dtype, generator)
            size = inputs.float().abs() @ span.T
            yield Case((inputs, planes.to(torch.uint8), scale, offset), size)


def _dequantize(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for shape, bits, grid in _grids(generator):
        yield Case((*grid, bits, shape[1]))


def _gather(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for shape, bits, grid in _grids(generator):
        rows = torch.randint(0, shape[0], (5,), generator=generator)
        yield Case((rows, *grid, bits, shape[1]))


def _pack(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for bits in range(1, 9):
        yield Case((torch.randint(0, 1 << bits, (5, 123), generator=generator), bits))


def _unpack(dtype: torch.dtype, generator: Generator) -> Iterator[Case]:
    for case in _pack(dtype, generator):
        codes, bits = case.arguments
        yield Case((pack_bits(codes, bits), bits, codes.shape[1]))


_MAKERS: dict[str, Callable[[torch.dtype, Generator], Iterator[Case]]] = {
    "pack_bits": _pack,
    "unpack_bits": _unpack,
    "dequantize": _dequantize,
    "gather_rows": _gather,
    "dense_matmul": _dense,
    "weight_only_matmul": _weight_only,
    "int4_tile_matmul": _tiles,
    "int8_matmul": _int8,
    "quantize_activations": _activations,
    "hadamard": _hadamard,
    "bitmask_matmul": _bitmask,
    "nm_matmul": _nm,
    "low_rank_matmul": _low_rank,
    "lut_gemm": _lut,
    **MAKERS,
}
