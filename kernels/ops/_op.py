"""An operation with several back-ends: which one runs, on what, and why the others do not.

An operation is its reference: a plain torch function, correct on every device and dtype. Back-ends
take the same arguments and are faster for some of them. A call runs the usable back-end of the
highest priority::

    @operation
    def row_sum(matrix: Tensor) -> Tensor:
        \"\"\"Sum of each row.\"\"\"
        return matrix.float().sum(dim=1).to(matrix.dtype)

    @row_sum.backend("triton", priority=20, devices=("cuda",), requires=triton_is_missing)
    def _triton(matrix: Tensor) -> Tensor:
        \"\"\"One program a row.\"\"\"
        ...

A test pins one: ``with row_sum.pinned("triton"): row_sum(matrix)``.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from autocomp.kernels._flat import Flat

P = ParamSpec("P")
R = TypeVar("R")

REFERENCE = "reference"
_PINS: ContextVar[Mapping[str, str]] = ContextVar("autocomp_kernel_pins", default={})  # noqa: B039


def _nothing() -> str | None:
    """Return that nothing is missing."""
    return None


def _anything(*_: Any, **__: Any) -> str | None:
    """Return that any arguments will do."""
    return None


def _is_there(device: str) -> bool:
    """Return whether this machine has a type of device."""
    return device == "cpu" or bool(getattr(torch, device).is_available())


@dataclass(frozen=True, slots=True)
class Backend(Generic[P, R]):
    """One way to run an operation.

    Args:
        name: Its name within the operation.
        run: The function; the signature is the reference's.
        priority: The usable back-end with the highest runs; the reference has 0.
        devices: Types of device (``cpu``, ``cuda``) of the first argument; empty is any.
        dtypes: Dtypes of the first argument, as ``bfloat16``; empty is any.
        rule: In a few words, the arguments that ``check`` lets pass.
        requires: Returns what this machine lacks, or ``None``.
        check: Returns why these arguments cannot be, or should not be, run here, or ``None``.
    """

    name: str
    run: Callable[P, R]
    priority: int = 0
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    rule: str = "any arguments"
    requires: Callable[[], str | None] = _nothing
    check: Callable[P, str | None] = _anything

    def why_not(self, *args: P.args, **kwargs: P.kwargs) -> str | None:
        """Return why it cannot run these arguments here; ``None`` when it can."""
        first = args[0]
        if isinstance(first, Tensor):
            device, dtype = first.device.type, str(first.dtype).removeprefix("torch.")
            if self.devices and device not in self.devices:
                return f"requires {' or '.join(self.devices)}, the input is on {device}"
            if self.dtypes and dtype not in self.dtypes:
                return f"requires {' or '.join(self.dtypes)}, the input is {dtype}"
        return self.requires() or self.check(*args, **kwargs)

    def why_not_here(self) -> str | None:
        """Return why it runs nothing at all on this machine; ``None`` when it runs something."""
        if self.devices and not any(map(_is_there, self.devices)):
            return f"requires {' or '.join(self.devices)}"
        return self.requires()

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]


class Operation(Generic[P, R]):
    """A callable with back-ends; made by :func:`operation` of its reference.

    Args:
        reference: What defines the result.
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        functools.update_wrapper(self, reference)
        self.__name__: str = reference.__name__
        self.backends: list[Backend[P, R]] = [Backend(REFERENCE, reference)]
        self._operator: Callable[..., R] | None = None

    @property
    def reference(self) -> Callable[P, R]:
        """What defines the result."""
        return self.backends[-1].run

    def backend(
        self,
        name: str,
        *,
        priority: int,
        devices: tuple[str, ...] = (),
        dtypes: tuple[str, ...] = (),
        rule: str = "any arguments",
        requires: Callable[[], str | None] = _nothing,
        check: Callable[P, str | None] = _anything,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register the decorated function; see :class:`Backend` for the arguments.

        Raises:
            ValueError: If the name is taken or the priority is not above the reference's.
        """
        if priority <= 0 or any(name == known.name for known in self.backends):
            raise ValueError(
                f"{self.__name__}: a back-end has a name of its own and a priority above 0, got "
                f"{name!r} with {priority}."
            )

        def register(run: Callable[P, R]) -> Callable[P, R]:
            found = Backend(name, run, priority, devices, dtypes, rule, requires, check)
            self.backends.append(found)
            self.backends.sort(key=lambda known: -known.priority)
            return run

        return register

    def operator(self, shape: Callable[P, R]) -> Callable[P, R]:
        """Make the operation one node of a graph under ``torch.compile``: ``autocomp::NAME``.

        The back-end is chosen at each call of the graph. Eager calls do not go through the
        operator, which costs tens of microseconds a call. Named tuples are spread out: see
        :mod:`autocomp.kernels._flat`.

        Args:
            shape: Returns an empty result, of the shape and dtype of the real one.
        """
        self.flat = Flat(self.reference)
        run = self.flat.taking_plain(self._best)
        schema = torch.library.infer_schema(run, mutates_args=())
        found = torch.library.custom_op(
            f"autocomp::{self.__name__}", run, mutates_args=(), schema=schema
        )
        found.register_fake(self.flat.taking_plain(shape))
        self._operator = found
        return shape

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the best usable back-end."""
        if self._operator is not None and torch.compiler.is_compiling():
            placed, named = self.flat.spread(args, kwargs)
            return self._operator(*placed, **named)
        return self._best(*args, **kwargs)

    def _best(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.choose(*args, **kwargs).run(*args, **kwargs)

    def choose(self, *args: P.args, **kwargs: P.kwargs) -> Backend[P, R]:
        """Return the back-end that runs these arguments: the pinned one, or the best usable.

        Raises:
            ValueError: If the pinned one cannot run them.
        """
        pinned = _PINS.get().get(self.__name__)
        for known in self.backends:
            if pinned is None:
                if known.name == REFERENCE or known.why_not(*args, **kwargs) is None:
                    return known
            elif known.name == pinned:
                if reason := known.why_not(*args, **kwargs):
                    raise ValueError(
                        f"{self.__name__}: the back-end {pinned} cannot run: {reason}."
                    )
                return known
        raise ValueError(f"{self.__name__}: no back-end {pinned!r}. Known: {self.names}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the back-ends, the highest priority first."""
        return tuple(known.name for known in self.backends)

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, str | None]:
        """Return, for each back-end, why it cannot run these arguments; ``None`` when it can."""
        return {known.name: known.why_not(*args, **kwargs) for known in self.backends}

    @contextmanager
    def pinned(self, name: str) -> Iterator[None]:
        """Run only the back-end called ``name`` while the context lasts, in this thread.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in self.names:
            raise ValueError(f"{self.__name__}: no back-end {name!r}. Known: {self.names}.")
        token = _PINS.set({**_PINS.get(), self.__name__: name})
        try:
            yield
        finally:
            _PINS.reset(token)


def operation(reference: Callable[P, R]) -> Operation[P, R]:
    """Make an operation of its reference; used as a decorator."""
    return Operation(reference)
