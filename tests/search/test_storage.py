"""Storages: torn lines, full disks, wrong URLs."""

import os
import sys
import threading
import time

import optuna
import pytest
from optuna.storages.journal import JournalFileSymlinkLock

from autocomp.core.errors import ConfigError, StoreError
from autocomp.search.storage import JournalFile, open_storage


def stored(folder):
    storage = open_storage(None, folder)
    return optuna.create_study(study_name="s", storage=storage, load_if_exists=True)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_line_torn_by_a_kill_is_cut_off(tmp_path, cut, caplog):
    study = stored(tmp_path)
    study.set_user_attr("first", 1)
    study.set_user_attr("second", "x" * 60)
    journal = tmp_path / "journal.log"
    os.truncate(journal, journal.stat().st_size - cut)
    again = stored(tmp_path)
    assert again.user_attrs == {"first": 1}
    again.set_user_attr("third", 3)
    assert "cut off" in caplog.text
    again.set_user_attr("fourth", 4)
    assert stored(tmp_path).user_attrs == {"first": 1, "third": 3, "fourth": 4}


def test_process_that_lives_on_notices_a_torn_line_of_another(tmp_path):
    study = stored(tmp_path)
    study.set_user_attr("first", 1)
    with open(tmp_path / "journal.log", "ab") as file:
        file.write(b'{"op_code": 2, "study_')
    study.set_user_attr("second", 2)
    assert stored(tmp_path).user_attrs == {"first": 1, "second": 2}


def test_failed_append_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    study = stored(tmp_path)
    study.set_user_attr("first", 1)
    before = (tmp_path / "journal.log").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left.*free some space"):
        study.set_user_attr("second", 2)
    monkeypatch.undo()
    assert (tmp_path / "journal.log").read_bytes() == before
    assert not (tmp_path / "journal.log.lock").is_symlink(), "the lock is released"
    study.set_user_attr("third", 3)
    assert stored(tmp_path).user_attrs == {"first": 1, "third": 3}


def test_lock_of_a_dead_process_does_not_hold_up_the_next(tmp_path, caplog):
    study = stored(tmp_path)
    (tmp_path / "journal.log.lock").symlink_to(tmp_path / "journal.log")
    begun = time.monotonic()
    study.set_user_attr("first", 1)
    assert time.monotonic() - begun < 5
    assert "process that died" in caplog.text
    assert stored(tmp_path).user_attrs == {"first": 1}


def test_lock_of_optuna_is_waited_for(tmp_path, caplog):
    study = stored(tmp_path)
    theirs = JournalFileSymlinkLock(str(tmp_path / "journal.log"))
    theirs.acquire()
    timer = threading.Timer(0.1, theirs.release)
    timer.start()
    study.set_user_attr("first", 1)
    timer.join()
    assert not (tmp_path / "journal.log.lock").is_symlink()
    assert "died" not in caplog.text


def test_empty_append_target_is_not_torn(tmp_path):
    JournalFile(tmp_path / "new.log").append_logs([{"a": 1}, {"b": 2}])
    assert (tmp_path / "new.log").read_text() == '{"a":1}\n{"b":2}\n'


@pytest.mark.parametrize("url", ["nonsense://host/x", "mysql+nodriver://host/x"])
def test_url_that_nothing_understands(url, tmp_path):
    with pytest.raises(ConfigError, match="cannot open the study storage"):
        open_storage(url, tmp_path)


def test_password_is_not_repeated(tmp_path):
    with pytest.raises(ConfigError) as error:
        open_storage("nonsense://me:secret@host/x", tmp_path)
    assert "secret" not in str(error.value)
    assert "host" in str(error.value)


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open"):
        open_storage(None, tmp_path / "file" / "study")
    with pytest.raises(StoreError, match="cannot open"):
        open_storage(f"sqlite:///{tmp_path / 'none' / 'x.db'}", tmp_path)


@pytest.mark.parametrize(
    ("module", "url"), [("redis", "redis://host"), ("psycopg", "postgresql://host/x")]
)
def test_without_its_driver_the_extra_is_named(tmp_path, monkeypatch, module, url):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'autocomp\[storage\]'"):
        open_storage(url, tmp_path)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "postgresql://me:secret@127.0.0.1:1/x"])
def test_server_that_is_not_there(tmp_path, url):
    with pytest.raises(StoreError, match=r"cannot open the study storage \w+://127.*refused"):
        open_storage(url, tmp_path)
