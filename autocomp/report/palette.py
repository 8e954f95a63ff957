"""One colour a family (Okabe and Ito: safe for colour-blind readers), and optional imports."""

import importlib
from collections.abc import Iterable
from types import ModuleType

from autocomp.core.errors import ConfigError

KNOWN = {
    "quantized": "#0072b2",
    "sparse": "#d55e00",
    "low-rank": "#009e73",
    "bypassed": "#cc79a7",
    "uniform": "#52606d",
}
OTHERS = ("#e69f00", "#56b4e9", "#7f3c8d", "#8c6d31")


def colours(families: Iterable[str]) -> dict[str, str]:
    """Return a colour for each family, the same in every figure."""
    names = list(dict.fromkeys(families))
    unknown = [name for name in names if name not in KNOWN]
    return {name: KNOWN.get(name) or OTHERS[unknown.index(name) % len(OTHERS)] for name in names}


def optional(module: str) -> ModuleType:
    """Import a module of the ``report`` extra.

    Raises:
        ConfigError: If it is not installed; one line naming the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{package} is not installed: run pip install 'autocomp[report]'."
        ) from error
