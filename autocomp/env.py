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


def devices_dir() -> Path:
    """Return the folder of device files that ``autocomp bench --calibrate`` writes."""
    return cache_dir() / "devices"


def times_dir() -> Path:
    """Return the folder of measured times that ``autocomp bench`` writes."""
    return cache_dir() / "times"


def storage_url() -> str | None:
    """Return the study storage of ``AUTOCOMP_STORAGE``, else ``OPTUNA_STORAGE``, else ``None``."""
    return os.environ.get("AUTOCOMP_STORAGE") or os.environ.get("OPTUNA_STORAGE") or None


def log_level() -> str:
    """Return the logging level name: ``AUTOCOMP_LOG_LEVEL``, else ``WARNING``."""
    return os.environ.get("AUTOCOMP_LOG_LEVEL", "WARNING").upper()


def no_color() -> bool:
    """Whether ``NO_COLOR`` asks for output without colours (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def ray_address() -> str | None:
    """Return the Ray cluster of ``RAY_ADDRESS``; ``None`` starts one on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def prepare_ray() -> None:
    """Set what Ray reads when it is imported and started, unless the user has set it.

    No usage statistics, no log files and tables of trials, workers that stay in this process'
    directory, and GPUs that stay visible to workers without a share of one.
    """
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():
        os.environ.setdefault(name, value)
