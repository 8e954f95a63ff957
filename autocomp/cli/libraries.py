"""Keep the libraries below from writing over our own progress."""

import importlib
import logging


def quiet_libraries() -> None:
    """Let transformers and Optuna speak only of what goes wrong."""
    importlib.import_module("optuna.logging").set_verbosity(logging.WARNING)
    transformers_logging = importlib.import_module("transformers.utils.logging")
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
