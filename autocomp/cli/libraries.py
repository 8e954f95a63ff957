"""Keep the libraries below from writing over our own progress."""

import logging


def quiet_libraries() -> None:
    """Let transformers and Optuna speak only of what goes wrong."""
    import optuna
    import transformers

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    transformers.utils.logging.set_verbosity(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
