"""Allocations to start a search from, as texts of the settings."""

from autocomp.core.errors import ConfigError
from autocomp.core.registry import ALLOCATIONS

DEFAULT_ALLOCATIONS = ("owl", "samsp", "asvd")


def allocation_tokens(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the canonical tokens of allocations; one without settings imports nothing.

    Raises:
        ConfigError: If there is none of a name, a setting is not allowed, or two are the same.
    """
    found = tuple(
        text if text in ALLOCATIONS else ALLOCATIONS[text.partition("-")[0]].parse(text).token()
        for text in texts
    )
    if len(set(found)) < len(found):
        raise ConfigError(f"name every allocation once, got {', '.join(found)}.")
    return found
