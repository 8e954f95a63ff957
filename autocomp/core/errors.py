"""The error tree.

Every message says what went wrong, where, what was given, what is allowed and what to do.
The command line maps each class to its documented exit code.
"""

from typing import ClassVar


class AutocompError(Exception):
    """Root of all errors that autocomp raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(AutocompError, ValueError):
    """A configuration, an option name or an input file is wrong."""

    exit_code = 2


class PlanError(AutocompError, ValueError):
    """A plan or a layer spec is malformed or does not fit the model."""

    exit_code = 2


class UnsupportedError(AutocompError, NotImplementedError):
    """The model, the target or the combination of methods is not supported."""

    exit_code = 2


class InfeasibleError(AutocompError, ValueError):
    """No candidate can satisfy the budget."""

    exit_code = 3


class StoreError(AutocompError, OSError):
    """The layer store or the study directory cannot be read or written."""


class ExportError(AutocompError, RuntimeError):
    """An export was refused or did not reproduce the measured model."""


class NumericalError(AutocompError, ArithmeticError):
    """A tensor holds NaN or infinity, or a factorisation failed."""


class WorkerError(AutocompError, RuntimeError):
    """The workers of a search could not start, or died again and again."""
