"""The FIFO that a shim logs to, and writes its panics to. It must have a reader before the shim starts and as long as it lives.

Without a reader a shim hangs at the first line that it logs, and every call with it; without the FIFO it dies at once
(runtime-v2 section 2). Opened for reading and writing, so that it neither blocks nor sees the end of file when a writer goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from agent import log
from agent.aio import in_thread

_log = log.get("shim")

_CHUNK = 1 << 16
_TAIL = 4096
"""Bytes kept to tell the last words of a shim that died."""
_LINE = 8192
"""Bytes of a line that are logged; nothing says that a shim ever ends one."""


class ShimLog:
    """Reads one shim's log FIFO until `close()`."""

    def __init__(self, shim_id: str, descriptor: int) -> None:
        self._shim_id = shim_id
        self._descriptor = descriptor
        self._tail = bytearray()
        self._line = bytearray()
        self._last_error = ""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)

    @classmethod
    async def open(cls, shim_id: str, fifo: Path) -> ShimLog:
        """Make the FIFO, if it isn't there, and begin to read it. Raises OSError."""
        return cls(shim_id, await in_thread(_open, fifo))

    def tail(self) -> str:
        """What was read last."""
        self._read()
        return self._tail.decode(errors="replace").strip()

    def last_error(self) -> str:
        """The last line that told of an error or a panic."""
        self._read()
        return self._last_error

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._descriptor < 0:
            return
        self._read()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1

    def _read(self) -> None:
        if self._descriptor < 0:
            return
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._descriptor, _CHUNK)
            self._tail = (self._tail + chunk)[-_TAIL:]
            self._line += chunk
            *lines, self._line = self._line.split(b"\n")
            if len(self._line) > _LINE:
                lines.append(self._line)
                self._line = bytearray()
            for line in lines:
                self._tell(line[:_LINE].decode(errors="replace"))

    def _tell(self, line: str) -> None:
        if "level=error" in line or "level=fatal" in line or line.startswith("panic:"):
            self._last_error = line
            _log.warning("the shim logged an error", shim=self._shim_id, line=line)
        elif line:
            _log.debug("shim log", shim=self._shim_id, line=line)


def _open(fifo: Path) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(fifo, 0o700)
    return os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
