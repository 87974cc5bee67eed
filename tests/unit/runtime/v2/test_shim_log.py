"""The FIFO of a shim's own log."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import structlog.testing

from agent.runtime.v2.shim_log import ShimLog


async def write(path: Path, data: bytes) -> None:
    """As a shim does; never blocks, since there is a reader."""
    descriptor = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


async def test_its_last_words(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logged:
        log = await ShimLog.open("s", tmp_path / "log")
        await write(tmp_path / "log", b'level=debug msg="fine"\nlevel=error msg="bad"\npanic: ')
        await write(tmp_path / "log", b"no\nrest")
        assert log.tail().endswith("panic: no\nrest")
        assert log.last_error() == "panic: no"
        log.close()
        log.close()
        assert log.tail().endswith("rest")
    assert [(entry["log_level"], entry["line"]) for entry in logged] == [
        ("debug", 'level=debug msg="fine"'),
        ("warning", 'level=error msg="bad"'),
        ("warning", "panic: no"),
    ]


async def test_it_goes_on_after_a_writer_has_gone(tmp_path: Path) -> None:
    log = await ShimLog.open("s", tmp_path / "log")
    for number in range(3):
        await write(tmp_path / "log", b"line %d\n" % number)
        await asyncio.sleep(0)
    assert log.tail().splitlines() == ["line 0", "line 1", "line 2"]
    log.close()


async def test_a_second_reader_takes_over(tmp_path: Path) -> None:
    """After a restart of the daemon: what was written meanwhile is still there."""
    first = await ShimLog.open("s", tmp_path / "log")
    held = os.open(tmp_path / "log", os.O_RDWR | os.O_NONBLOCK)
    first.close()
    os.write(held, b"meanwhile\n")
    second = await ShimLog.open("s", tmp_path / "log")
    os.close(held)
    assert second.tail() == "meanwhile"
    second.close()


async def test_a_line_without_end_is_not_kept_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await ShimLog.open("s", tmp_path / "log")
    with structlog.testing.capture_logs() as logged:
        for _ in range(4):
            await write(tmp_path / "log", b"x" * 4000)
            log.tail()
    assert len(log.tail()) == 4096
    assert logged[0]["line"] == "x" * 8192
    log.close()
