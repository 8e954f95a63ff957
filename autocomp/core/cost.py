"""What a plan may cost: names in files and settings, and how people read the values."""

from typing import Final

from autocomp.core.units import format_bytes

WEIGHT_BYTES: Final = "weight_bytes"
PEAK_MEMORY_BYTES: Final = "peak_memory_bytes"
DECODE_MS: Final = "decode_ms"
PREFILL_MS: Final = "prefill_ms"
FLOPS: Final = "flops"

LIMITS: Final = {
    WEIGHT_BYTES: "max_bytes",
    PEAK_MEMORY_BYTES: "max_memory",
    DECODE_MS: "max_decode_ms",
    PREFILL_MS: "max_prefill_ms",
    FLOPS: "max_flops",
}
"""The setting that limits each cost."""

TIMES: Final = (DECODE_MS, PREFILL_MS)
"""Costs that depend on a device, and that may be measured."""

EXACT: Final = "exact"
MODELLED: Final = "modelled"
MEASURED: Final = "measured"
MIXED: Final = "mixed"
SOURCES: Final = (EXACT, MODELLED, MEASURED, MIXED)
"""Where a cost comes from: shapes; a roofline; a table of measurements; such a table with scaled
rooflines where it has no entry."""

_TITLES = {
    WEIGHT_BYTES: "weight file, MB",
    PEAK_MEMORY_BYTES: "peak memory, MB",
    DECODE_MS: "decoding a token, ms",
    PREFILL_MS: "reading the context, ms",
    FLOPS: "operations a token, MFLOP",
}


def title_of(cost: str, source: str = EXACT) -> str:
    """Return the title of an axis or a column, with the unit of :func:`shown`.

    Args:
        cost: Name of the cost.
        source: Where its values come from; stated unless it is ``exact``.
    """
    return _TITLES[cost] if source == EXACT else f"{_TITLES[cost]} ({source})"


def shown(cost: str, value: float) -> float:
    """Return a cost in the unit that figures show it in: millions, or milliseconds."""
    return value if cost in TIMES else value / 1e6


def format_cost(cost: str, value: float) -> str:
    """Return a cost with its unit: ``79.8 MB``, ``1.24 ms``, ``269.1 MFLOP``."""
    if cost in TIMES:
        return f"{value:.4g} ms"
    if cost == FLOPS:
        return f"{value / 1e6:.4g} MFLOP"
    return format_bytes(value)


def option_of(cost: str) -> str:
    """Return the option of the command line that limits a cost: ``--max-bytes``."""
    return "--" + LIMITS[cost].replace("_", "-")
