"""Capture: an ExecSync's output."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import errdefs
from agent.aio import in_thread
from agent.logs import Capture
from tests.unit.logs.toolbox import Shim, until


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_keeps_both_streams_until_their_end(tmp_path: Path) -> None:
    before = _descriptors()
    capture = await Capture.open(tmp_path, "e1")
    assert capture.stdio.stdout == str(tmp_path / "io" / "e1" / "stdout")
    shim = Shim(capture.stdio)
    shim.write(b"out\n")
    shim.close_stream("stdout")
    await until(lambda: capture.stdout == b"out\n", "output captured")
    with pytest.raises(errdefs.DeadlineExceeded):
        await capture.drained(0.01)
    shim.write(b"err\n", "stderr")
    shim.close()
    await capture.drained(20)
    assert (capture.stdout, capture.stderr, capture.truncated) == (b"out\n", b"err\n", False)
    await capture.close()
    await capture.close()
    assert list((tmp_path / "io").iterdir()) == []
    assert _descriptors() == before


async def test_nothing_before_the_first_writer_is_no_end(tmp_path: Path) -> None:
    capture = await Capture.open(tmp_path, "e1")
    with pytest.raises(errdefs.DeadlineExceeded, match="exec e1"):
        await capture.drained(0.02)
    Shim(capture.stdio).close()
    await capture.drained(20)
    await capture.close()


async def test_a_background_child_that_holds_a_stream_doesnt_hide_what_came(tmp_path: Path) -> None:
    capture = await Capture.open(tmp_path, "e1")
    shim = Shim(capture.stdio)
    shim.write(b"out\n")
    await until(lambda: capture.stdout == b"out\n", "output captured")
    with pytest.raises(errdefs.DeadlineExceeded):
        await capture.drained(0.01)
    await capture.close()
    assert capture.stdout == b"out\n"
    shim.close()


async def test_reads_on_over_the_limit_and_says_so(tmp_path: Path) -> None:
    capture = await Capture.open(tmp_path, "e1", limit=100_000)
    shim = Shim(capture.stdio)
    writing = asyncio.create_task(asyncio.to_thread(shim.write, b"x" * 1_000_000))
    shim.write(b"y" * 1000, "stderr")
    await writing
    shim.close()
    await capture.drained(20)
    assert (capture.stdout, capture.stderr, capture.truncated) == (b"x" * 100_000, b"y" * 1000, True)
    await capture.close()


async def test_a_failed_open_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "io" / "e1").mkdir(parents=True)
    (tmp_path / "io" / "e1" / "stderr").write_bytes(b"not a FIFO")
    before = _descriptors()
    with pytest.raises(OSError, match="not a FIFO"):
        await Capture.open(tmp_path, "e1")
    assert _descriptors() == before
    assert list((tmp_path / "io").iterdir()) == []


async def test_an_id_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        await Capture.open(tmp_path, "../e1")


async def test_a_cancelled_open_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _descriptors()
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow_thread(function: Callable[..., None], *arguments: object) -> None:
        monkeypatch.setattr("agent.logs.capture.in_thread", in_thread)
        started.set()
        await asyncio.shield(asyncio.create_task(later(function, *arguments)))

    async def later(function: Callable[..., None], *arguments: object) -> None:
        await go_on.wait()
        await in_thread(function, *arguments)

    monkeypatch.setattr("agent.logs.capture.in_thread", slow_thread)
    opening = asyncio.create_task(Capture.open(tmp_path, "e1"))
    await started.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()
    await until(lambda: (tmp_path / "io").exists() and not any((tmp_path / "io").iterdir()), "FIFOs made and removed")
    await until(lambda: _descriptors() == before, "descriptors closed")
