"""The names of variants: ``base`` is the model as loaded, any other is the token of an edit."""

from typing import Any

from autocomp.core.errors import ConfigError
from autocomp.core.registry import METHODS, nearest

BASE = "base"
PARAMETER = "variant"
"""The study's parameter: the index of a plan's variant, ``base`` first."""


def variant_spec(token: str) -> Any:
    """Return the spec of a variant's token, such as ``flap-p80``.

    Raises:
        ConfigError: If no method of scope ``architecture`` reads it.
        PlanError: If that method cannot.
    """
    name = token.partition("-")[0]
    known = [key for key in METHODS if METHODS[key].scope == "architecture"]
    if name not in known:
        raise ConfigError(
            f"unknown variant {token!r}: {name!r} is no method that changes the architecture."
            f"{nearest(name, known)} Known: {', '.join(known)}."
        )
    return METHODS[name].spec.parse(token)
