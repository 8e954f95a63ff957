"""Every environment variable that autocomp reads, in one file."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for everything that can be rebuilt.

    ``AUTOCOMP_CACHE``, else ``~/.cache/autocomp``.
    """
    return Path(
        os.environ.get("AUTOCOMP_CACHE") or Path.home() / ".cache" / "autocomp"
    ).expanduser()


def reference_dir() -> Path:
    """Return the folder of converted reference models.

    ``AUTOCOMP_REFERENCE_CACHE``, else ``models`` below :func:`cache_dir`.
    """
    folder = os.environ.get("AUTOCOMP_REFERENCE_CACHE")
    return Path(folder).expanduser() if folder else cache_dir() / "models"


def storage_url() -> str | None:
    """Return the study storage of ``AUTOCOMP_STORAGE``, else ``OPTUNA_STORAGE``, else ``None``."""
    return os.environ.get("AUTOCOMP_STORAGE") or os.environ.get("OPTUNA_STORAGE") or None


def log_level() -> str:
    """Return the logging level name: ``AUTOCOMP_LOG_LEVEL``, else ``WARNING``."""
    return os.environ.get("AUTOCOMP_LOG_LEVEL", "WARNING").upper()


def no_color() -> bool:
    """Whether ``NO_COLOR`` asks for output without colours (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))
