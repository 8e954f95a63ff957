"""What every registered method says about itself, for ``autocomp ls`` and the documentation."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from autocomp.core.registry import METHODS
from autocomp.core.spec import NATIVE_ONLY, SLOTS

SCOPES = {
    "site": "what is done to one weight, or to one sub-block",
    "input": "what is done to the input of a linear",
    "refinement": "what is done to the mask that another method chose",
    "cache": "how keys and values are stored",
    "architecture": "prepared variants of the search, each with a knapsack of its own",
    "block": "steps of the finish that optimise the sites of a block together",
    "model": "training of a finished model: `autocomp recover`",
    "data": "text that a model writes, for calibration and recovery",
}
"""The scopes of methods in the order of a model's way through the program."""

NATIVE = NATIVE_ONLY | {"architecture"}
"""Slots and scopes for the native target alone; a variant of one width goes to others too."""


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method.

    Args:
        name: Key in ``METHODS``.
        kind: Its scope, a key of ``SCOPES``.
        slot: Slot of a layer spec that it fills; empty for scopes that fill none.
        token: How its tokens are written.
        sites: Kinds of site that it applies to.
        needs: Statistics that it reads.
        formats: Formats that its results are stored in.
        targets: Export formats that can hold the results.
        version: Part of store keys.
        summary: One line.
        reference: URL of the paper.
    """

    name: str
    kind: str
    slot: str
    token: str
    sites: tuple[str, ...]
    needs: tuple[str, ...]
    formats: tuple[str, ...]
    targets: tuple[str, ...]
    version: int
    summary: str
    reference: str

    @property
    def paper(self) -> str:
        """A short name of the reference: ``arXiv 2210.17323``."""
        arxiv = re.fullmatch(r"https://arxiv\.org/abs/(\S+)", self.reference)
        return f"arXiv {arxiv[1]}" if arxiv else "paper"


def method_rows() -> list[MethodRow]:
    """Return all methods by scope, then slot, then table order."""
    rows = [_row(name, METHODS[name]) for name in METHODS]
    slots = ("", *SLOTS)
    return sorted(rows, key=lambda row: (list(SCOPES).index(row.kind), slots.index(row.slot)))


def _row(name: str, method: Any) -> MethodRow:
    slot = method.spec.slot if method.spec.slot in SLOTS else ""
    return MethodRow(
        name=name,
        kind=method.scope,
        slot=slot,
        token=grammar(method.spec),
        sites=tuple(sorted(getattr(method, "kinds", ()))),
        needs=tuple(sorted(need.value for need in method.needs)),
        formats=_formats(method, slot),
        targets=("native",) if {slot, method.scope} & NATIVE else ("native", "hf"),
        version=method.version,
        summary=method.summary.rstrip("."),
        reference=method.reference,
    )


def _formats(method: Any, slot: str) -> tuple[str, ...]:
    """Return the formats: a method's own, or the wrapper that its slot puts around them."""
    own: tuple[str, ...] = getattr(method, "formats", ())
    return {"input": ("prepared",), "activation": ("prepared",), "residual": ("sum",)}.get(
        slot, own
    )


def grammar(spec: type[Any]) -> str:
    """Return how tokens of a spec are written, from the docstring that documents it."""
    for owner in spec.__mro__:
        found = re.search(
            r"[Tt]oken:? (``.*?)[.;:](?:\s|$)", inspect.getdoc(owner) or "", re.DOTALL
        )
        if found:
            text = " ".join(found[1].split()).replace("``", "`")
            return text.replace("<method>", spec.method)
    return f"`{spec.method}`"
