"""Lazy tables from names to things, the only way ``autocomp.*`` reaches its sibling folders.

A table maps a name to an import string such as ``"autocomp.methods.quantization.gptq:Gptq"``.
Nothing is imported before it is asked for, so ``autocomp --help`` loads neither torch nor Triton.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from autocomp.core.errors import ConfigError


def load_object(path: str) -> Any:
    """Import ``"package.module:attribute"`` and return the attribute."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(name: str, allowed: list[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest allowed names, or an empty string."""
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(item) for item in close)}?" if close else ""


class Registry(Mapping[str, Any]):
    """A read-only mapping from names to lazily imported objects.

    Args:
        kind: What the names stand for; used in error messages (``"method"``).
        table: Import string of a ``dict[str, str]``, itself imported on first use.
    """

    def __init__(self, kind: str, table: str) -> None:
        self.kind = kind
        self._table_path = table
        self._table: dict[str, str] | None = None

    @property
    def table(self) -> dict[str, str]:
        """The explicit table: name to import string."""
        if self._table is None:
            self._table = dict(load_object(self._table_path))
        return self._table

    def __getitem__(self, name: str) -> Any:
        """Return the object called ``name``.

        Raises:
            ConfigError: If the name is not registered; the message lists the nearest names.
        """
        return load_object(self.table[self.check(name)])

    def check(self, name: str) -> str:
        """Return a name that is registered; imports nothing but the table.

        Raises:
            ConfigError: If the name is not registered; the message lists the nearest names.
        """
        if name not in self.table:
            raise ConfigError(
                f"unknown {self.kind} {name!r}.{nearest(name, list(self.table))} "
                f"Known: {', '.join(sorted(self.table))}."
            )
        return name

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is registered; imports nothing but the table."""
        return name in self.table

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in table order."""
        return iter(self.table)

    def __len__(self) -> int:
        """Return the number of registered names."""
        return len(self.table)


METHODS = Registry("method", "autocomp.methods:METHODS")
SPACES = Registry("search space", "autocomp.search_spaces:SPACES")
KERNELS = Registry("kernel", "autocomp.kernels:KERNELS")
DRIVERS = Registry("driver", "autocomp.search.drivers:DRIVERS")
COSTS = Registry("cost", "autocomp.cost:COSTS")
SCORES = Registry("score", "autocomp.search.scores:SCORES")
SAMPLERS = Registry("sampler", "autocomp.search.samplers:SAMPLERS")
ALLOCATIONS = Registry("allocation", "autocomp.search.allocations:ALLOCATIONS")
FORMATS = Registry("format", "autocomp.formats:FORMATS")
STEPS = Registry("input step", "autocomp.formats:STEPS")
