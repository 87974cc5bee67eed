"""The log file: how it is opened, and what becomes of records that don't go in."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.logs import log_file
from agent.logs.log_file import LogFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0.log"


def test_appends_to_a_new_file_that_only_root_and_its_group_read(path: Path) -> None:
    before = os.umask(0o027)
    try:
        log = LogFile(str(path))
        log.open()
    finally:
        os.umask(before)
    log.write(b"one\n")
    log.write(b"two\n")
    log.close()
    log.close()
    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_existing_file_is_kept(path: Path) -> None:
    path.write_bytes(b"old\n")
    log = LogFile(str(path))
    log.open()
    log.write(b"new\n")
    log.close()
    assert path.read_bytes() == b"old\nnew\n"


def test_a_record_that_a_sigkill_cut_off_spoils_no_other(path: Path) -> None:
    path.write_bytes(b"one\n2026-11-2")
    log = LogFile(str(path))
    log.open()
    log.write(b"two\n")
    log.write(b"three\n")
    log.close()
    assert path.read_bytes() == b"one\n2026-11-2\ntwo\nthree\n"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"its directory {tmp_path}/pod doesn't exist"):
        LogFile(str(tmp_path / "pod" / "0.log")).open()


def test_a_symbolic_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link") as caught:
        LogFile(str(path)).open()
    assert caught.value.errno == errno.ELOOP
    assert not (tmp_path / "elsewhere").exists()


def test_reopened_after_a_rotation_it_writes_to_the_new_file(path: Path) -> None:
    log = LogFile(str(path))
    log.open()
    log.write(b"one\n")
    rotated = path.rename(path.with_suffix(".1"))
    log.write(b"two\n")
    log.open()
    log.write(b"three\n")
    log.close()
    assert (rotated.read_bytes(), path.read_bytes()) == (b"one\ntwo\n", b"three\n")


def test_a_reopen_that_fails_leaves_the_old_file_in_use_and_no_descriptor(path: Path) -> None:
    log = LogFile(str(path))
    log.open()
    rotated = path.rename(path.with_suffix(".1"))
    path.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(IsADirectoryError, match="can't be opened"):
        log.open()
    assert len(os.listdir("/proc/self/fd")) == before
    log.write(b"still\n")
    log.close()
    assert rotated.read_bytes() == b"still\n"


def test_a_full_disk_costs_records_and_nothing_else() -> None:
    log = LogFile("/dev/full")
    log.open()
    log.write(b"one\n")
    log.write(b"three\n")
    log.close()
    assert (log.errors, log.dropped) == (2, 10)
    assert "No space left" in log.last_error


def test_a_record_that_a_full_disk_cut_off_spoils_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LogFile(str(path))
    log.open()
    real_write, room = os.write, 6

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real_write(descriptor, data[:room])
        room -= count
        return count

    monkeypatch.setattr(os, "write", write)
    log.write(b"one\ntwo\nthree\n")
    assert (path.read_bytes(), log.errors, log.dropped) == (b"one\ntw", 1, 8)
    room = 1
    log.write(b"lost\n")
    assert (path.read_bytes(), log.errors, log.dropped) == (b"one\ntw\n", 2, 13)
    room = 100
    log.write(b"four\n")
    log.close()
    assert path.read_bytes() == b"one\ntw\nfour\n"


def test_a_log_that_could_not_be_opened_is_tried_again_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(log_file, "time", SimpleNamespace(monotonic=lambda: now))
    path = tmp_path / "pod" / "0.log"
    log = LogFile(str(path))
    log.write(b"one\n")
    path.parent.mkdir()
    log.write(b"two\n")
    assert (log.errors, log.dropped) == (2, 8)
    assert log.last_error == f"the log {path} can't be opened, as its directory {path.parent} doesn't exist"
    now += 1.0
    log.write(b"three\n")
    log.close()
    assert path.read_bytes() == b"three\n"
