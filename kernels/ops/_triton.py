"""Triton where it is of use: compiling, launching, recording and interpreting kernels.

Triton is imported where there is a CUDA device (AMD cards are of that type too), or by a program
that has imported it before this package: one that interprets kernels on the processor
(``TRITON_INTERPRET=1``, set before Triton is imported) or compiles them ahead of time. Elsewhere
kernels stay plain functions that nobody calls, and their back-ends say what is missing.

A kernel in an operation's file::

    @jit
    def _kernel(inputs: tl.tensor, outputs: tl.tensor, size: int, BLOCK: tl.constexpr) -> None: ...

    @triton_backend(row_sum, rule="rows of whole words", check=_not_whole)
    def _triton(inputs: Tensor) -> Tensor:
        \"\"\"One program a row.\"\"\"
        options = options_of("row_sum", inputs.device, rows=inputs.shape[0])
        launch(_kernel, (inputs.shape[0],), inputs, outputs, inputs.shape[1], **options)

How many columns a program takes, warps and stages are data (``launch/*.toml``), not code.
"""

import functools
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from autocomp.kernels._op import Operation

P = ParamSpec("P")
R = TypeVar("R")

try:
    if "triton" not in sys.modules and not torch.cuda.is_available():
        raise ImportError("nothing here runs its kernels")
    import triton
    import triton.language as tl
    from triton import jit

    INTERPRETED = bool(triton.knobs.runtime.interpret)
    LOADED = True
except ImportError:
    INTERPRETED = LOADED = False
    tl = SimpleNamespace(constexpr=None, tensor=None)

    def jit(function: Any) -> Any:
        """Return the function as it is: it is never called."""
        return function


NAME = "triton"
PRIORITY = 50
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
DTYPES = ("float16", "float32") if INTERPRETED else ("float16", "bfloat16", "float32")
"""Dtypes of inputs; interpreted products of bf16 are wrong."""

_INTERPRETING: ContextVar[bool] = ContextVar("autocomp_kernel_interpreting", default=False)
_RECORD: ContextVar["list[Launch] | None"] = ContextVar("autocomp_kernel_record", default=None)


@dataclass(frozen=True, slots=True)
class Launch:
    """What was, or would be, launched.

    Args:
        kernel: The compiled or interpreted function.
        grid: Programs in each direction.
        arguments: By position: tensors, numbers, ``None``.
        options: Compile-time arguments, ``num_warps`` and ``num_stages``.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


def lacks_triton() -> str | None:
    """Return why no Triton kernel runs here."""
    if INTERPRETED:
        return None if _INTERPRETING.get() else "kernels are interpreted only where a test asks"
    if not torch.cuda.is_available():
        return "requires a CUDA device"
    return None if LOADED else "requires triton: pip install triton"


@contextmanager
def interpreting() -> Iterator[None]:
    """Let interpreted kernels run while the context lasts: exact, thousands of times as slow."""
    token = _INTERPRETING.set(True)
    try:
        yield
    finally:
        _INTERPRETING.reset(token)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Record launches instead of running them; outputs stay undefined. For ``meta`` tensors."""
    found: list[Launch] = []
    token = _RECORD.set(found)
    try:
        yield found
    finally:
        _RECORD.reset(token)


def triton_backend(
    found: Operation[P, R],
    *,
    check: Callable[P, str | None],
    rule: str = "any arguments",
    dtypes: tuple[str, ...] = DTYPES,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function as the operation's Triton back-end.

    Args:
        found: The operation.
        check: Returns why these arguments cannot be run, or ``None``.
        rule: In a few words, the arguments that ``check`` lets pass.
        dtypes: Dtypes of the first argument.
    """
    return found.backend(
        NAME,
        priority=PRIORITY,
        devices=DEVICES,
        dtypes=dtypes,
        rule=rule,
        requires=lacks_triton,
        check=check,
    )


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument, a tensor, in the current stream.

    Args:
        kernel: What :data:`jit` made.
        grid: Programs in each direction.
        arguments: By position.
        options: Compile-time arguments, ``num_warps`` and ``num_stages``.
    """
    record = _RECORD.get()
    if record is not None:
        record.append(Launch(kernel, grid, arguments, options))
        return
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **options)
        return
    kernel[grid](*arguments, **options)


def partial_outputs(inputs: Tensor, features: int, split: int) -> Tensor:
    """Return where programs write: (1, rows, out) in the dtype of the inputs, or parts to add.

    Parts are (split, rows, out) fp32: one of each share of the inputs' columns.
    """
    dtype = inputs.dtype if split == 1 else torch.float32
    return inputs.new_empty((split, inputs.shape[0], features), dtype=dtype)


def cdiv(numerator: int, denominator: int) -> int:
    """Return ``⌈numerator / denominator⌉``."""
    return -(-numerator // denominator)


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least ``number``."""
    return 1 << max(0, number - 1).bit_length()


@functools.cache
def _tables() -> dict[str, Mapping[str, Any]]:
    """Return the launch tables by the part of a device's name that they are for."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in files(__package__).joinpath("launch").iterdir():
        if path.name.endswith(".toml"):
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            found[table["device"]] = table
    return found


@functools.cache
def _table(device: str) -> tuple[Mapping[str, Any], ...]:
    """Return the tables of a device, the default last."""
    tables = _tables()
    own = [table for part, table in tables.items() if part and part in device]
    return (*own, tables[""])


@functools.cache
def _device_name(index: int) -> str:
    """Return the name of a CUDA device."""
    return str(torch.cuda.get_device_name(index))


def options_of(kernel: str, device: torch.device, **sizes: int) -> dict[str, int]:
    """Return compile-time arguments, warps and stages of a kernel, from the launch tables.

    The first entry counts whose bounds hold (``up_to``: the largest sizes that it is for), in the
    table of the device, else in ``default.toml``, whose last entry of each kernel has none.

    Args:
        kernel: Key in the tables.
        device: Where it runs.
        sizes: By the names that bounds use, such as ``rows``.
    """
    name = _device_name(device.index or 0) if device.type == "cuda" else ""
    return dict(_options(kernel, name, tuple(sizes.items())))


@functools.lru_cache(maxsize=4096)
def _options(kernel: str, device: str, sizes: tuple[tuple[str, int], ...]) -> Mapping[str, int]:
    for table in _table(device):
        for entry in table.get(kernel, ()):
            bounds = entry.get("up_to", {})
            if all(size <= bounds.get(name, size) for name, size in sizes):
                return {key: value for key, value in entry.items() if key != "up_to"}
    raise KeyError(f"launch/default.toml has no entry of {kernel!r} without bounds")
