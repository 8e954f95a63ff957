"""How long work reports itself, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """A listener; the command line draws bars or prints lines, tests stay silent."""

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        """Begin a stage of ``total`` units."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report that ``amount`` units of the stage are done."""

    def finish(self, summary: str = "") -> None:
        """End the stage."""

    def log(self, text: str) -> None:
        """Say one line."""


class Silent:
    """Says nothing."""

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        """Ignore."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Ignore."""

    def finish(self, summary: str = "") -> None:
        """Ignore."""

    def log(self, text: str) -> None:
        """Ignore."""
