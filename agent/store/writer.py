"""The thread behind a database file: writes are queued, committed in their order, and answered on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

_LARGEST_BATCH = 64


@dataclass(eq=False)
class Write:
    """One function to run inside a transaction, and where its answer goes.

    `value` or `error` is set by the writer. The function can run again after a rollback, so it does nothing but SQL.
    """

    function: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    keys: tuple[Hashable, ...] = ()
    insisted: bool = False
    reads: bool = False
    failed: bool = False
    superseded: dict[Hashable, Write] = field(default_factory=dict)
    value: Any = None
    error: BaseException | None = field(default=None, repr=False)


Commit = Callable[[list[Write]], None]
"""Runs the writes, in order, in as few transactions as it can; sets `value` or `error` of each and raises nothing."""
Deliver = Callable[[list[Write]], None]
"""Called on the event loop once they are committed or have failed."""


class Writer(Protocol):
    """Where a database's writes run. The simulation has one that finishes each write before it returns."""

    def put(self, write: Write) -> None:
        """Queue the write. Never blocks, never fails."""

    async def stop(self, last: Callable[[], None]) -> None:
        """Finish what is queued, then call `last` where the writes ran."""


class WriterThread:
    """One thread. What is queued when it looks goes into one transaction: one fsync for all of them."""

    def __init__(self, name: str, commit: Commit, deliver: Deliver) -> None:
        self._commit = commit
        self._deliver = deliver
        self._queue: SimpleQueue[Write | Callable[[], None]] = SimpleQueue()
        # A daemon thread: a disk that hangs must not keep a process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, write: Write) -> None:
        self._queue.put(write)

    async def stop(self, last: Callable[[], None]) -> None:
        # Not by joining in a thread of the loop's pool: if the disk hangs, the loop could not end either.
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def finish() -> None:
            last()
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        self._queue.put(finish)
        await ended.wait()

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            batch: list[Write] = []
            while isinstance(item, Write):
                batch.append(item)
                if self._queue.empty() or len(batch) == _LARGEST_BATCH:
                    break
                item = self._queue.get()
            if batch:
                self._commit(batch)
                # The loop may have ended without waiting for this write.
                with contextlib.suppress(RuntimeError):
                    batch[0].future.get_loop().call_soon_threadsafe(self._deliver, batch)
            if not isinstance(item, Write):
                item()
                return
