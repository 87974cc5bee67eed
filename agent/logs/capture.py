"""Capture: the output of an ExecSync, read by the daemon itself, since it goes into the CRI answer and not into a log."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

from agent import failpoints
from agent.aio import in_thread, within
from agent.identifiers import validate
from agent.logs import fifos
from agent.logs.fifos import Stdio

LIMIT = 16 << 20
"""Bytes kept of each stream: more than fits in an ExecSync's answer."""
_CHUNK = 64 << 10


class Capture:
    """The FIFOs of one exec and what came through them. Owned by the ExecSync verb, which ends with `close`.

    The read ends are open when `open` returns. Nothing readable before the first writer came is 'not yet', and the kernel
    agrees: an end that has seen no writer isn't reported as hung up (runtime-v2.md 8).
    """

    def __init__(self, directory: Path, limit: int) -> None:
        """Use `open`."""
        self._directory = directory
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._acquired = False
        self._readers: dict[str, int] = {}
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._at_end = asyncio.Event()
        self.stdio: Stdio = fifos.stdio(directory, terminal=False)
        """The paths for the exec request."""
        self.truncated = False
        """Something was read and dropped, as one stream was over the limit."""

    @classmethod
    async def open(cls, state_dir: Path, exec_id: str, *, limit: int = LIMIT) -> Capture:
        """Make the FIFOs `<state>/io/<exec id>/{stdout,stderr}` and read them from now on. Raises OSError, with nothing left."""
        capture = cls(state_dir / "io" / validate(exec_id, "exec id"), limit)
        await failpoints.hit("logs.capture.fifos")
        try:
            await in_thread(capture._acquire)
        except asyncio.CancelledError:
            await capture.close()
            raise
        for name, descriptor in capture._readers.items():
            capture._loop.add_reader(descriptor, capture._read, name, descriptor)
        return capture

    @property
    def stdout(self) -> bytes:
        """What came so far, up to the limit."""
        return bytes(self._kept["stdout"])

    @property
    def stderr(self) -> bytes:
        """What came so far, up to the limit."""
        return bytes(self._kept["stderr"])

    async def drained(self, budget: float) -> None:
        """Wait until both streams are at their end, for `budget` seconds.

        Raises:
            DeadlineExceeded: somebody still holds one, a background child of the exec most likely.
        """
        await within(budget, self._at_end.wait(), f"reading the output of exec {self._directory.name} to its end")

    async def close(self) -> None:
        """Close the read ends and remove the FIFOs; what was captured stays. Idempotent. Raises OSError."""
        with self._lock:
            self._closed = True
            acquired = self._acquired
        for name in list(self._readers):
            self._close(name)
        if acquired:
            await in_thread(fifos.remove, self._directory)

    def _acquire(self) -> None:
        """Runs in a thread, and to its end even if `open` was cancelled and `close` is through."""
        try:
            readers = fifos.make_and_open(self._directory, False)
        except OSError:
            fifos.remove(self._directory)
            raise
        with self._lock:
            if not self._closed:
                self._acquired, self._readers = True, readers
                return
        fifos.close(readers)
        fifos.remove(self._directory)

    def _read(self, name: str, descriptor: int) -> None:
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self._close(name)
            return
        kept = self._kept[name]
        room = self._limit - len(kept)
        kept += chunk[:room]
        self.truncated |= len(chunk) > room

    def _close(self, name: str) -> None:
        descriptor = self._readers.pop(name)
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        if not self._readers:
            self._at_end.set()
