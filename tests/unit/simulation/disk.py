"""The disk of a simulated node, as its databases meet it: SQLite's files are in memory, outlive incarnations, and can be full.

That SQLite's real files survive a `kill -9`, a power cut and damage is tried in `tests/unit/store` and in e2e; here, opening and syncing
them would take a tenth of the time.
"""

from __future__ import annotations

import asyncio
import sqlite3
from asyncio import events
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from agent.errdefs import Unavailable
from agent.store import schema, store
from agent.store.database import Database
from agent.store.writer import Commit, Deliver, Write
from tests.unit.simulation.clock import Life


class Disk:
    """Whether the file systems of the two databases are full, and what is in these."""

    def __init__(self) -> None:
        self.full = False
        self.refused = 0
        self._files: dict[Path, sqlite3.Connection] = {}

    def open(self, path: Path) -> sqlite3.Connection:
        if (found := self._files.get(path)) is None:
            found = self._files[path] = sqlite3.connect(":memory:", isolation_level=None)
            found.deserialize(_empty())
        return found

    def lose(self, directory: Path) -> None:
        """What was in memory of the node, a power cut takes."""
        for path in [path for path in self._files if directory in path.parents]:
            self._files.pop(path).close()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stores that are opened are on this disk."""
        opened: Any = store
        opened.Database = partial(SimDatabase, self)
        try:
            yield
        finally:
            opened.Database = Database
            for connection in self._files.values():
                connection.close()


@cache
def _empty() -> bytes:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(connection)
    return connection.serialize()


class SimDatabase(Database):
    """One whose file is in memory."""

    def __init__(self, disk: Disk, path: Path, **options: Any) -> None:
        self._disk = disk
        super().__init__(path, **options)

    def _open(self) -> sqlite3.Connection:
        connection = self._disk.open(self.path)
        if self._boot_id:
            schema.begin_boot(connection, self._boot_id)
        return connection

    def _disconnect(self) -> None:
        self._connection = None


class SimWriter:
    """`agent.store.writer.WriterThread`: a write is done when `put` returns; its answer comes in the loop's next turn."""

    def __init__(self, life: Life, disk: Disk, commit: Commit, deliver: Deliver) -> None:
        self._life = life
        self._disk = disk
        self._commit = commit
        self._deliver = deliver

    def put(self, write: Write) -> None:
        if self._life.dead:
            write.error = Unavailable("this incarnation is dead")
        elif self._disk.full and not write.reads:
            self._disk.refused += 1
            write.error = Unavailable("the store can't be written: database or disk is full")
            write.error.__cause__ = sqlite3.OperationalError("database or disk is full")
        else:
            _off_loop(self._commit, [write])
        asyncio.get_running_loop().call_soon(self._deliver, [write])

    async def stop(self, last: Callable[[], None]) -> None:
        _off_loop(last)


def _off_loop(work: Callable[..., None], *args: Any) -> None:
    """The database insists on not being used on the loop's thread. Here nobody waits for it."""
    loop = events._get_running_loop()
    events._set_running_loop(None)
    try:
        work(*args)
    finally:
        events._set_running_loop(loop)
