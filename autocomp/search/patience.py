"""Waiting for a study storage that does not answer, such as a server that restarts."""

import abc
import functools
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

from optuna.storages import BaseStorage

from autocomp.core.errors import StoreError

PATIENCE_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0

logger = logging.getLogger(__name__)


def _forwarded(name: str) -> Callable[..., Any]:
    """Return a method that calls the method of this name of the storage behind."""

    def call(self: "PatientStorage", *args: Any, **kwargs: Any) -> Any:
        return self.until_answered(functools.partial(getattr(self.behind, name), *args, **kwargs))

    return call


def _forwarding(kind: type) -> type:
    """Give a class every public method of a storage, each forwarded."""
    for name, _ in inspect.getmembers(BaseStorage, inspect.isfunction):
        if not name.startswith("_"):
            setattr(kind, name, _forwarded(name))
    return abc.update_abstractmethods(kind)


@_forwarding
class PatientStorage(BaseStorage):  # type: ignore[misc, unused-ignore]
    """A storage of Optuna whose server may go away for a while.

    Args:
        behind: The storage.
        place: Its name in messages.
        broken: Errors by which it says that something is wrong with it.
        away: Errors, or causes of them, by which it says that its server is away.
        patience_s: How long to go on trying.
    """

    def __init__(
        self,
        behind: BaseStorage,
        place: str,
        broken: tuple[type[Exception], ...],
        away: tuple[type[Exception], ...],
        patience_s: float = PATIENCE_SECONDS,
    ) -> None:
        self.behind = behind
        self._place = place
        self._broken = broken
        self._away = away
        self._patience_s = patience_s

    def until_answered(self, call: Callable[[], Any]) -> Any:
        """Return the result of a call, made again after growing pauses while the server is away.

        A call whose answer was lost may have taken effect; a trial so created twice is noticed by
        :meth:`autocomp.search.study.Study.add`, and everything else may be done twice.

        Raises:
            StoreError: When the server stays away, or anything else is wrong with the storage.
        """
        deadline, pause = time.monotonic() + self._patience_s, FIRST_PAUSE_SECONDS
        while True:
            try:
                return call()
            except self._broken as error:
                if not any(isinstance(cause, self._away) for cause in _causes(error)):
                    raise StoreError(
                        f"the study storage {self._place} failed: {_first_line(error)}. What was "
                        "stored before is safe: put it right and run the same command again."
                    ) from error
                if time.monotonic() + pause > deadline:
                    raise StoreError(
                        f"the study storage {self._place} has not answered for "
                        f"{self._patience_s:.0f} s: {_first_line(error)}. What was stored before "
                        "is safe: start the server and run the same command again."
                    ) from error
                if pause == FIRST_PAUSE_SECONDS:
                    logger.warning(
                        "the study storage %s does not answer (%s); trying again for %.0f s",
                        self._place,
                        _first_line(error),
                        self._patience_s,
                    )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it was raised from or while handling, the first of them last."""
    earlier = error.__cause__ or error.__context__
    return [error] if earlier is None else [error, *_causes(earlier)]


def _first_line(error: BaseException) -> str:
    """Return the first line of what an error was caused by."""
    first = _causes(error)[-1]
    return str(first).strip().partition("\n")[0] or type(first).__name__
