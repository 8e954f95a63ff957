"""Where a study lives: a journal file that survives kills, or any storage that Optuna knows."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import (
    JournalFileBackend,
    JournalFileSymlinkLock,
    JournalRedisBackend,
)
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)

from autocomp.core.errors import ConfigError, StoreError
from autocomp.search.patience import PatientStorage

JOURNAL_NAME = "journal.log"
STALE_LOCK_SECONDS = 1.0
SQLITE_WAIT_SECONDS = 60
CREATION_ATTEMPTS = 4
CREATION_PAUSE_SECONDS = 0.25
REDIS_BATCH = 500

logger = logging.getLogger(__name__)


class JournalLock(JournalFileSymlinkLock):  # type: ignore[misc, unused-ignore]
    """Optuna's lock file, inside a lock of the kernel that is freed when its process dies.

    Optuna's own lock outlives a killed process and then blocks everybody for its grace period.
    Holding the kernel's lock, we know that no other process of ours is writing: a lock file that
    stays is a dead process's. Programs that know Optuna's lock alone are excluded as ever.

    Args:
        journal: The journal file.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._file = Path(f"{journal}.lock")
        self._kernel = FileLock(f"{journal}.flock")

    def acquire(self) -> bool:
        """Wait for both locks."""
        self._kernel.acquire()
        try:
            deadline = time.monotonic() + STALE_LOCK_SECONDS
            while self._file.is_symlink() and time.monotonic() < deadline:
                time.sleep(0.01)
            if self._file.is_symlink():
                logger.warning("%s: removed the lock of a process that died", self._file)
                self._file.unlink(missing_ok=True)
            return bool(super().acquire())
        except BaseException:
            self._kernel.release()
            raise

    def release(self) -> None:
        """Free both locks."""
        try:
            super().release()
        finally:
            self._kernel.release()


class JournalFile(JournalFileBackend):  # type: ignore[misc, unused-ignore]
    """Optuna's journal file, whose last line may have been cut off by a kill or a full disk.

    Optuna appends behind such a line, which glues two records together and makes every later read
    fail. Here an append first cuts the torn line off, which its writer never knew to be stored.
    The file format is Optuna's, and plain Optuna reads it.

    Args:
        path: The file; created when missing.
    """

    def __init__(self, path: Path) -> None:
        self._journal = path.resolve()
        self._guard = JournalLock(self._journal)
        super().__init__(str(self._journal), self._guard)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, all or none.

        Raises:
            StoreError: If the disk is full or the file cannot be written.
        """
        lines = (json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        data = "".join(lines).encode()
        self._guard.acquire()
        try:
            self._append(data)
        except OSError as error:
            raise StoreError(
                f"cannot write the study to {self._journal}: {error}. What was stored before is "
                "safe: free some space and run the same command again."
            ) from error
        finally:
            self._guard.release()

    def _append(self, data: bytes) -> None:
        """Write behind the last complete line, and take everything back if that fails."""
        with open(self._journal, "a+b", buffering=0) as file:
            end = _end_of_lines(file.read()) if _is_torn(file) else file.seek(0, os.SEEK_END)
            if end != file.seek(0, os.SEEK_END):
                logger.warning("%s: cut off a line that was not written to its end", file.name)
                file.truncate(end)
            try:
                written = file.write(data)
                if written != len(data):
                    raise OSError(f"only {written} of {len(data)} bytes could be written")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


def _is_torn(file: Any) -> bool:
    """Whether a binary file ends inside a line; leaves it at its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    last: bytes = file.read(1)
    file.seek(0)
    return size > 0 and last != b"\n"


def _end_of_lines(content: bytes) -> int:
    """Return the offset behind the last complete line."""
    return content.rfind(b"\n") + 1


class RedisJournal(JournalRedisBackend):  # type: ignore[misc, unused-ignore]
    """Optuna's journal in Redis, read in batches, and without its snapshots, which are pickled.

    Redis forgets what it had not written to its disk when it is killed. A journal that has become
    shorter is refused, for the numbers of new records would then stand for two. The records are
    Optuna's, and plain Optuna reads them.

    Args:
        url: URL of the server.
    """

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the records from a number on.

        Raises:
            StoreError: If records that were read before are gone.
        """
        last = int(self._redis.get(f"{self._prefix}:log_number") or -1)
        if last < log_number_from - 1:
            raise StoreError(
                f"Redis has lost {log_number_from - 1 - last} records of the study, as it does "
                "when it restarts without a log on its disk. Start it with --appendonly yes, and "
                "run the same command again: it goes on from what is left."
            )
        for start in range(log_number_from, last + 1, REDIS_BATCH):
            numbers = range(start, min(start + REDIS_BATCH, last + 1))
            found: Any = self._redis.mget([self._key_log_id(number) for number in numbers])
            yield from map(json.loads, found)

    def save_snapshot(self, snapshot: bytes) -> None:
        """Keep none."""

    def load_snapshot(self) -> None:
        """Return none."""


def open_storage(storage: str | None, study_dir: Path) -> BaseStorage:
    """Open or create the storage of a study.

    A server that goes away later is waited for; see :mod:`autocomp.search.patience`.

    Args:
        storage: ``sqlite:///file``, ``postgresql://…``, ``redis://…``, the path of a journal
            file, or ``None`` for ``journal.log`` in the study directory.
        study_dir: Study directory.

    Raises:
        ConfigError: If the URL cannot be understood or its driver is not installed.
        StoreError: If the storage cannot be reached, read or written.
    """
    place = without_password(storage or str(study_dir))
    try:
        if storage is None or "://" not in storage:
            path = study_dir / JOURNAL_NAME if storage is None else Path(storage)
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFile(path))
        if storage.startswith("redis"):
            return _redis(storage, place)
        return _relational(storage, place)
    except (ImportError, ValueError, ArgumentError) as error:
        raise ConfigError(
            f"cannot open the study storage {place!r}: {error}. Give a path, "
            "sqlite:///file, postgresql://… or redis://…, whose drivers come with "
            "pip install 'autocomp[storage]'."
        ) from error
    except (OSError, SQLAlchemyError, StorageInternalError) as error:
        raise StoreError(
            f"cannot open the study storage {place}: {error}. "
            "Check that it exists and that you may write to it."
        ) from error


def _redis(url: str, place: str) -> BaseStorage:
    """Open a journal in Redis."""
    from redis import exceptions

    journal = RedisJournal(url)
    try:
        opened = JournalStorage(journal)
        with contextlib.suppress(exceptions.ResponseError):  # a server that hides its settings
            if journal._redis.config_get("appendonly")["appendonly"] != "yes":
                logger.warning(
                    "the Redis server of the study keeps no log on its disk: the study is lost "
                    "when it dies. Start it with --appendonly yes."
                )
    except exceptions.RedisError as error:
        raise OSError(str(error)) from error
    away = (exceptions.ConnectionError, exceptions.TimeoutError)
    broken = (exceptions.RedisError,)
    return PatientStorage(opened, place, broken, away)  # type: ignore[abstract]


def _relational(url: str, place: str) -> BaseStorage:
    """Open a database, again when another process was creating its tables at the same time."""
    local = url.startswith("sqlite")
    options = {
        "connect_args": {"timeout": SQLITE_WAIT_SECONDS} if local else {},
        "pool_pre_ping": not local,
    }
    if url.startswith("postgresql://"):  # which driver that means depends on SQLAlchemy's version
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    for attempt in range(1, CREATION_ATTEMPTS + 1):
        try:
            opened = RDBStorage(url, engine_kwargs=options)
            break
        except DBAPIError:
            if attempt == CREATION_ATTEMPTS:
                raise
            time.sleep(CREATION_PAUSE_SECONDS)
    away = () if local else (OperationalError, InterfaceError)  # SQLite itself waits for a lock
    broken = (SQLAlchemyError, StorageInternalError)
    return PatientStorage(get_storage(opened), place, broken, away)  # type: ignore[abstract]


def existing_storage(source: str | Path) -> tuple[BaseStorage, Path | None]:
    """Open the storage of an existing study for reading, creating nothing.

    Args:
        source: A study directory, a journal file or a storage URL.

    Returns:
        The storage, and the study directory where the source tells it.

    Raises:
        ConfigError: If nothing is there.
    """
    text = str(source)
    if "://" in text:
        file = Path(text.removeprefix("sqlite:///"))
        if text.startswith("sqlite:///") and not file.is_file():
            raise ConfigError(f"there is no study: the file {file} does not exist.")
        return open_storage(text, Path()), None
    path = Path(source)
    journal = path / JOURNAL_NAME if path.is_dir() else path
    if not journal.is_file():
        raise ConfigError(
            f"there is no study at {path}: {journal} does not exist. Give the directory of a "
            "search (--study-dir), or the URL that it was stored under (--storage)."
        )
    return open_storage(str(journal), journal.parent), journal.parent


def without_password(url: str) -> str:
    """Return a URL without its user and password, for messages; a path as it is."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
