"""The name of a finish: what recompression aims at, and what tunes blocks behind it.

``none`` compresses each site once more from the inputs that it really gets, ``signround-50`` then
tunes blocks; ``gptaq`` and ``gptaq+signround-50`` do the same but compress each site towards what
the dense model gives (:mod:`autocomp.search.two_streams`).
"""

from typing import Any

from autocomp.core.errors import ConfigError
from autocomp.core.registry import METHODS, nearest

NONE = "none"
TWO_STREAMS = "gptaq"
DEFAULT_FINISH = "signround-50"


def two_streams(token: str) -> bool:
    """Return whether a finish compresses towards the outputs of the dense model."""
    return token.partition("+")[0] == TWO_STREAMS


def finish_spec(token: str) -> Any | None:
    """Return the spec of what tunes blocks in a finish; ``None`` where nothing does.

    Raises:
        ConfigError: If no method of scope ``block`` reads it; the message lists near names.
        PlanError: If that method cannot.
    """
    tuner = token
    if two_streams(token):
        tuner = token.removeprefix(TWO_STREAMS).removeprefix("+") or NONE
    if tuner == NONE:
        return None
    name = tuner.partition("-")[0]
    known = [key for key in METHODS if METHODS[key].scope == "block"]
    if name not in known:
        allowed = [NONE, TWO_STREAMS, *known]
        raise ConfigError(
            f"unknown finish {token!r}: {name!r} is no method that tunes blocks."
            f"{nearest(name, allowed)} Known: {', '.join(allowed)}; a method's parameters "
            f"follow its name, as in {DEFAULT_FINISH} or {TWO_STREAMS}+{DEFAULT_FINISH}."
        )
    return METHODS[name].spec.parse(tuner)
