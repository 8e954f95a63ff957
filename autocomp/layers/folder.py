"""Folders that appear whole or not at all."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autocomp.core.errors import StoreError

ABANDONED_SECONDS = 24 * 3600


def is_occupied(path: Path) -> bool:
    """Return whether ``path`` is a file, or a folder that holds anything."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that takes its place when the block succeeds.

    Whatever was at ``path`` is replaced. When the block raises, ``path`` is left as it was and
    nothing else remains; what a killed process left is removed a day later.

    Args:
        path: The final folder; its parents are created.

    Yields:
        The folder to write into.

    Raises:
        StoreError: If the disk is full or the place cannot be written.
    """
    path = Path(os.path.abspath(path))
    temporary = _beside(path, "tmp")
    try:
        temporary.mkdir(parents=True)
        _sweep(path)
        yield temporary
        _replace(temporary, path)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write {path}: {error}. Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path, suffix: str) -> Path:
    """Return an unused hidden name in the same folder, hence on the same file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


def _sweep(path: Path) -> None:
    """Remove what processes that were killed long ago left beside ``path``."""
    for suffix in ("tmp", "old"):
        for left in path.parent.glob(f".{path.name}.????????.{suffix}"):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, moving an existing target out of the way first."""
    if not target.exists():
        os.replace(source, target)
        return
    old = _beside(target, "old")
    os.replace(target, old)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(old, target)
        raise
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)
