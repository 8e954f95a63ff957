"""The name of a finish: ``none``, or the token of a method that tunes blocks."""

from typing import Any

from autocomp.core.errors import ConfigError
from autocomp.core.registry import METHODS, nearest

NONE = "none"
DEFAULT_FINISH = "signround-50"


def finish_spec(token: str) -> Any | None:
    """Return the spec of a finish's token, such as ``signround-100``; ``None`` for ``none``.

    Raises:
        ConfigError: If no method of scope ``block`` reads it; the message lists near names.
        PlanError: If that method cannot.
    """
    if token == NONE:
        return None
    name = token.partition("-")[0]
    known = [key for key in METHODS if METHODS[key].scope == "block"]
    if name not in known:
        raise ConfigError(
            f"unknown finish {token!r}: {name!r} is no method that tunes blocks."
            f"{nearest(name, [NONE, *known])} Known: {', '.join([NONE, *known])}; a method's "
            f"parameters follow its name, as in {DEFAULT_FINISH}."
        )
    return METHODS[name].spec.parse(token)
