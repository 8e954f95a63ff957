"""Where calibration text comes from: a corpus, a data recipe, or half of each."""

from dataclasses import dataclass
from typing import Any

from autocomp.core.errors import ConfigError
from autocomp.core.registry import METHODS, nearest

CORPUS = "corpus"
MIX = "mix:"
DEFAULT_CALIBRATION = "mix:selfgen-t1"
"""Far better than the corpus on text unlike it, a little worse on text like it; see studies."""


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """A source of calibration text.

    Token: ``corpus``, a recipe's own such as ``selfgen-t1``, or ``mix:selfgen-t1`` for as many
    windows of the corpus as of the recipe.

    Args:
        recipe: Spec of a data recipe; ``None`` is the corpus alone.
        mixed: Whether the corpus gives half.
    """

    recipe: Any = None
    mixed: bool = False

    def token(self) -> str:
        """Return the canonical token."""
        if self.recipe is None:
            return CORPUS
        return f"{MIX if self.mixed else ''}{self.recipe.token()}"

    @classmethod
    def parse(cls, text: str) -> "CalibrationText":
        """Return the source of a token.

        Raises:
            ConfigError: If the recipe is unknown; the message lists the nearest names.
            PlanError: If the recipe's parameters cannot be read.
        """
        if text == CORPUS:
            return cls()
        if text.startswith(MIX):
            return cls(parse_recipe(text.removeprefix(MIX)), mixed=True)
        return cls(parse_recipe(text, CORPUS))


def parse_recipe(token: str, *others: str) -> Any:
    """Return the spec of a data recipe's token.

    Args:
        token: Such as ``selfgen-t1``.
        others: What else is allowed where the token stands, for the message.

    Raises:
        ConfigError: If the recipe is unknown; the message lists the nearest names.
        PlanError: If its parameters cannot be read.
    """
    name = token.partition("-")[0]
    if name not in METHODS or METHODS[name].scope != "data":
        known = [*others, *(key for key, method in METHODS.items() if method.scope == "data")]
        raise ConfigError(
            f"unknown data recipe {token!r}.{nearest(name, known)} Known: {', '.join(known)}; "
            "a recipe's parameters follow its name, as in selfgen-t1."
        )
    return METHODS[name].spec.parse(token)
