"""Arguments that are named tuples, spread out: an operator of a graph takes plain ones only.

``factor: Tensor | Packed`` becomes ``factor_codes, factor_scale, factor_zero, factor_bits``, the
fields of ``Packed``. A tensor in its place is the first of them alone, and ``None`` is none.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints

from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Flat:
    """How the arguments of a function become plain ones, and are put together again.

    Args:
        function: Its annotations say which parameters may be named tuples.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.signature = inspect.signature(function)
        hints = get_type_hints(function)
        self.kinds = {name: _tuple_of(hints[name]) for name in self.signature.parameters}
        self.plain = {name: hints[name] for name in self.kinds}
        self.returned = hints["return"]

    def spread(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return plain arguments, by position and by name."""
        placed, named = [], {}
        for kind, value in zip(self.kinds.values(), args, strict=False):
            placed.extend(_parts(kind, value))
        for name, value in kwargs.items():
            kind = self.kinds[name]
            named.update(zip(_names(name, kind), _parts(kind, value), strict=True))
        return placed, named

    def taking_plain(self, function: Callable[..., R]) -> Callable[..., R]:
        """Return the function with plain parameters, in its signature too."""

        def plain(*args: Any) -> R:
            return function(*self._gathered(iter(args)))

        parameters = []
        for name, known in self.signature.parameters.items():
            kind = self.kinds[name]
            if kind is None:
                parameters.append(known.replace(annotation=self.plain[name]))
            else:
                fields = get_type_hints(kind).values()
                parameters += [
                    inspect.Parameter(
                        own, known.kind, annotation=int if field is int else Tensor | None
                    )
                    for own, field in zip(_names(name, kind), fields, strict=True)
                ]
        signature = inspect.Signature(parameters, return_annotation=self.returned)
        plain.__signature__ = signature  # type: ignore[attr-defined]
        return plain

    def _gathered(self, args: Iterator[Any]) -> Iterator[Any]:
        """Yield the arguments that plain ones stand for."""
        for name, kind in self.kinds.items():
            if kind is None:
                yield next(args, self.signature.parameters[name].default)
                continue
            fields = [next(args) for _ in kind._fields]
            alone = fields[1] is None and Tensor in get_args(self.plain[name])
            yield fields[0] if fields[0] is None or alone else kind(*fields)


def _tuple_of(annotation: Any) -> Any:
    """Return the named tuple that an annotation allows, or ``None``."""
    choices = get_args(annotation) or (annotation,)
    return next((choice for choice in choices if hasattr(choice, "_fields")), None)


def _names(name: str, kind: Any) -> list[str]:
    """Return the names of the plain parameters that a parameter becomes."""
    return [name] if kind is None else [f"{name}_{field}" for field in kind._fields]


def _parts(kind: Any, value: Any) -> list[Any]:
    """Return the plain arguments that an argument becomes."""
    if kind is None:
        return [value]
    if value is not None and not isinstance(value, Tensor):
        return list(value)
    return [value, *(0 if field == "bits" else None for field in kind._fields[1:])]
