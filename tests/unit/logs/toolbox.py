"""What the tests of `agent.logs` share: the other end of the FIFOs, and a reader of CRI logs."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

from agent.logs import Stdio

RECORD = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9})(?:Z|[+-]\d\d:\d\d) (stdout|stderr) ([PF]) (.*)", re.DOTALL)


def records(log: bytes) -> list[tuple[str, str, str, bytes]]:
    """(timestamp, stream, tag, content) of each record; fails on anything that isn't one."""
    *lines, rest = log.split(b"\n")
    assert rest == b"", "the log ends within a record"
    found = []
    for line in lines:
        match = RECORD.fullmatch(line)
        assert match is not None, line
        found.append((match[1].decode(), match[2].decode(), match[3].decode(), match[4]))
    return found


def contents(log: bytes) -> list[tuple[str, bytes]]:
    """(tag, content) of each record."""
    return [(tag, content) for _, _, tag, content in records(log)]


def text(log: bytes, stream: str = "stdout") -> bytes:
    """What the container wrote to the stream."""
    return b"".join(content + b"\n" * (tag == "F") for _, name, tag, content in records(log) if name == stream)


class Shim:
    """The shim's end of one container's streams: each FIFO open for writing and for reading, as the shims do it."""

    PIECE = 32 << 10
    """Bytes of one write: the most a shim copies at once (runc's: 4 KiB)."""

    def __init__(self, stdio: Stdio) -> None:
        self._ends: dict[str, tuple[int, int]] = {}
        for name, path in (("stdout", stdio.stdout), ("stderr", stdio.stderr)):
            if path:
                self._ends[name] = (os.open(path, os.O_WRONLY), os.open(path, os.O_RDONLY))

    def write(self, data: bytes, stream: str = "stdout") -> None:
        """All of it; blocks while the FIFO is full."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._ends[stream][0], view[: self.PIECE]) :]

    def write_at_once(self, data: bytes) -> None:
        """To stdout, in a single write, as a container does whose stdout is the FIFO itself."""
        assert os.write(self._ends["stdout"][0], data) == len(data)

    def close_stream(self, stream: str) -> None:
        """The container closed one of them."""
        for descriptor in self._ends.pop(stream):
            os.close(descriptor)

    def close(self) -> None:
        """The container is gone, and the shim with it. Idempotent."""
        for stream in list(self._ends):
            self.close_stream(stream)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that nothing tells us about."""
    try:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"in 20 s not: {what}") from None


def size(path: Path) -> int:
    """Of a file that may not be there yet."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
