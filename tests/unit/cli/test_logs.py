"""`orlop logs`: records as lines again, what comes while one looks, and rotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from agent.cli import logs
from agent.cli.logs import LogReader
from agent.errdefs import FailedPrecondition
from cri.api import api_pb2 as cri
from cri.client import Client

STAMP = b"2026-01-01T00:00:00.000000000Z"


def record(content: bytes, stream: bytes = b"stdout", tag: bytes = b"F") -> bytes:
    return b" ".join([STAMP, stream, tag, content]) + b"\n"


def put(log: Path, content: bytes) -> None:
    log.write_bytes(content)


class FakeDaemon(Client):
    """One container with a log, which runs until `steps`, done one by one at each look at its status, are done."""

    def __init__(self, log: Path | str, *steps: Callable[[], object]) -> None:
        self._log = log
        self._steps = list(steps)

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        if method == "ListContainers":
            return cri.ListContainersResponse(containers=[cri.Container(id="c1", metadata=cri.ContainerMetadata(name="app"))])
        assert method == "ContainerStatus"
        if self._steps:
            self._steps.pop(0)()
        state = cri.CONTAINER_RUNNING if self._steps else cri.CONTAINER_EXITED
        return cri.ContainerStatusResponse(status=cri.ContainerStatus(id="c1", state=state, log_path=str(self._log)))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "0.log"
    path.write_bytes(b"")
    return path


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_INTERVAL", 0)


async def shown(
    capfdbinary: pytest.CaptureFixture[bytes], daemon: Client, form: str = "table", *, follow: bool = False, timestamps: bool = False
) -> tuple[bytes, bytes]:
    await logs.logs(daemon, "app", form, follow=follow, timestamps=timestamps)
    captured = capfdbinary.readouterr()
    return captured.out, captured.err


async def test_each_stream_to_its_own(log: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    put(log, record(b"one") + record(b"bad", b"stderr") + record(b"") + record(b" two  "))
    assert await shown(capfdbinary, FakeDaemon(log)) == (b"one\n\n two  \n", b"bad\n")


@pytest.mark.parametrize("content", [b"10%\r20%\r", b"a\x0bb\x0cc\x1cd\x85e", "\u2028ä".encode(), b"\xff\x00"])
async def test_only_a_newline_ends_a_line(log: Path, capfdbinary: pytest.CaptureFixture[bytes], content: bytes) -> None:
    put(log, record(content) + record(b"next"))
    assert await shown(capfdbinary, FakeDaemon(log)) == (content + b"\nnext\n", b"")


async def test_parts_of_a_line_are_put_together(log: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    put(log, record(b"a", tag=b"P") + record(b"b", tag=b"P") + record(b"c") + record(b"no end", tag=b"P"))
    assert await shown(capfdbinary, FakeDaemon(log)) == (b"abc\nno end", b"")


async def test_timestamps(log: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    put(log, record(b"one"))
    assert await shown(capfdbinary, FakeDaemon(log), timestamps=True) == (STAMP + b" one\n", b"")


async def test_records_for_programs(log: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    put(log, record(b"one", tag=b"P") + record(b"\xff", b"stderr"))
    out, _ = await shown(capfdbinary, FakeDaemon(log), "json")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"time": STAMP.decode(), "stream": "stdout", "partial": True, "text": "one"},
        {"time": STAMP.decode(), "stream": "stderr", "partial": False, "text": "\ufffd"},
    ]


async def test_a_record_that_is_being_written_waits_for_its_end(log: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    whole = record(b"second")
    put(log, record(b"first") + whole[:20])

    def finish() -> None:
        with log.open("ab") as file:
            file.write(whole[20:])

    daemon = FakeDaemon(log, lambda: None, finish)
    assert await shown(capfdbinary, daemon, follow=True) == (b"first\nsecond\n", b"")


async def test_without_follow_it_looks_once(log: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    put(log, record(b"first"))
    daemon = FakeDaemon(log, lambda: None, lambda: log.write_bytes(b""))
    assert await shown(capfdbinary, daemon) == (b"first\n", b"")
    assert len(daemon._steps) == 1


async def test_a_rotation_loses_and_repeats_nothing(log: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    put(log, record(b"1"))
    rotated = log.with_suffix(".1")

    def last_words_then_rotation() -> None:
        with log.open("ab") as file:
            file.write(record(b"2"))
        log.rename(rotated)
        log.write_bytes(record(b"3"))

    def renamed_only() -> None:
        log.rename(rotated)

    def reopened() -> None:
        log.write_bytes(record(b"4"))

    daemon = FakeDaemon(log, lambda: None, last_words_then_rotation, renamed_only, reopened)
    assert await shown(capfdbinary, daemon, follow=True) == (b"1\n2\n3\n4\n", b"")


@pytest.mark.parametrize("path", ["", "/no/such/log", "/"])
async def test_a_container_without_a_log_here(path: str) -> None:
    with pytest.raises(FailedPrecondition, match="log"):
        await logs.logs(FakeDaemon(path), "app", "table", follow=False, timestamps=False)


def test_a_large_log_is_read_in_pieces(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_CHUNK", 7)
    expected = [record(bytes([65 + number]) * number) for number in range(20)]
    put(log, b"".join(expected))
    reader = LogReader(log)
    assert list(reader.records()) == [line[:-1] for line in expected]
    assert list(reader.records()) == []
    reader.close()
