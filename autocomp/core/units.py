"""Sizes and durations as people write them."""

import re

from autocomp.core.errors import ConfigError

UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def parse_bytes(value: int | float | str) -> int:
    """Return a number of bytes: ``80MB`` is 80·10⁶, ``80MiB`` is 80·2²⁰, a plain number is bytes.

    Raises:
        ConfigError: If the text is not a size or the unit is unknown.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if isinstance(value, bool) or not found or found[2].lower() not in UNITS:
        raise ConfigError(
            f"cannot read {value!r} as a size: write a number and one of B, kB, MB, GB, TB, KiB, "
            "MiB, GiB, TiB, such as 80MB (80·10⁶ bytes) or 80MiB (80·2²⁰ bytes)."
        )
    return int(float(found[1]) * UNITS[found[2].lower()])


def parse_flops(value: int | float | str) -> int:
    """Return a number of floating-point operations: ``270M`` is 270·10⁶, a plain number is one.

    Raises:
        ConfigError: If the text is not a count or the prefix is unknown.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kMGT]?)\s*", str(value))
    if isinstance(value, bool) or not found:
        raise ConfigError(
            f"cannot read {value!r} as a number of operations: write a number and one of k, M, G, "
            "T, such as 270M (270·10⁶)."
        )
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))


def format_bytes(size: float) -> str:
    """Return a size in decimal units: ``79.8 MB``."""
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if abs(size) < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def parse_duration(value: int | float | str) -> float:
    """Return seconds: ``90s``, ``30m``, ``1h30m``, or a plain number of seconds.

    Raises:
        ConfigError: If the text is not a duration.
    """
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text) and not isinstance(value, bool):
        return float(text)
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or not found:
        raise ConfigError(f"cannot read {value!r} as a duration: write 90s, 30m or 1h30m.")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + seconds)
