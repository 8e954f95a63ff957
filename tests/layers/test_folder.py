import os
import time
from pathlib import Path

import pytest

from autocomp.core.errors import StoreError
from autocomp.layers.folder import ABANDONED_SECONDS, atomic_folder, is_occupied


def test_appears_whole_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    for text in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / text).write_text(text)
            assert not (target / text).exists()
        assert [path.name for path in target.iterdir()] == [text]
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_failure_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "kept").write_text("kept")

    def fail() -> None:
        with atomic_folder(target) as folder:
            (folder / "half").write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "kept"]


def test_disk_errors_say_what_to_do(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_folder(tmp_path / "model"):
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        fill()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError), atomic_folder(tmp_path / "file" / "model"):
        pass


def test_old_leftovers_are_swept(tmp_path: Path) -> None:
    stale, fresh = tmp_path / ".model.01234567.tmp", tmp_path / ".model.89abcdef.tmp"
    for path in (stale, fresh):
        path.mkdir()
    old = time.time() - 2 * ABANDONED_SECONDS
    os.utime(stale, (old, old))
    with atomic_folder(tmp_path / "model"):
        pass
    assert not stale.exists()
    assert fresh.exists()


def test_is_occupied(tmp_path: Path) -> None:
    assert not is_occupied(tmp_path / "absent")
    assert not is_occupied(tmp_path)
    (tmp_path / "file").write_text("")
    assert is_occupied(tmp_path)
    assert is_occupied(tmp_path / "file")
