"""One SQLite file: opening, repairing, writing it, on a thread of its own and never on the event loop's.

`agent.store.ledger` and `agent.store.records` hand in functions that do SQL; each runs inside a transaction. A file that is
corrupt is set aside, what can be read of it goes into a new one. A file that can't be written (disk full, read-only)
doesn't stop the agent: it can still be read, `write` is refused, `insist` stays pending until it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from agent import log, metrics
from agent.errdefs import LOOK_AT_THE_DISK, MAKE_ROOM, OrlopError, Unavailable
from agent.store import schema
from agent.store.writer import Commit, Deliver, Write, Writer, WriterThread

T = TypeVar("T")
_log = log.get("store")

MakeWriter = Callable[[str, Commit, Deliver], Writer]

_NODE_IS_AT_FAULT = frozenset(
    {
        sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS,
    }
)  # fmt: skip
_REOPEN_AFTER = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Database:
    """One file in WAL mode with one writer.

    Args:
        path: the file; its directory is made if it isn't there.
        synchronous: "FULL" survives a power cut, with an fsync for each commit; "OFF" survives the death of the process,
            which is all that a file in tmpfs needs.
        boot_id: if given, rows of another boot are dropped when the file is opened.
        writable: False for another process' look at the file (`orlop audit`): it is read from a private copy, never changed.
        scratch: where private copies go; None is the system's directory for temporary files.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Literal["OFF", "FULL"],
        clock: Callable[[], float],
        boot_id: str = "",
        writable: bool = True,
        scratch: Path | None = None,
        writer: MakeWriter = WriterThread,
    ) -> None:
        self.path = path
        self.problem = ""
        """Why the last write failed; empty when it worked."""
        self._synchronous = synchronous
        self._clock = clock
        self._boot_id = boot_id
        self.writable = writable
        self._scratch = scratch
        self._connection: sqlite3.Connection | None = None
        self._unsettled: dict[Hashable, Write] = {}
        self._closed = False
        self._writer = writer(f"store {path.name}", self._commit, self._deliver)

    # ---- the event loop's side

    def write(self, function: Callable[[sqlite3.Connection], T], *, keys: tuple[Hashable, ...] = ()) -> asyncio.Future[T]:
        """Run `function` inside a transaction; the result comes when it is committed. A cancelled caller doesn't undo it.

        `keys` name what is written: an older insisted write of one of them, still pending, is superseded.

        Raises (when awaited):
            Unavailable: the file can't be written; nothing of it was kept.
        """
        return self._put(Write(function, asyncio.get_running_loop().create_future(), keys))

    def insist(self, function: Callable[[sqlite3.Connection], object], *, key: Hashable) -> asyncio.Future[bool]:
        """Like `write`, but never fails: what can't be written now stays pending and is tried again by `flush`.

        Returns whether it is written. A later write of `key` supersedes it.
        """
        return self._put(Write(function, asyncio.get_running_loop().create_future(), (key,), insisted=True))

    def read(self, function: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Run a function that only reads; after the writes queued before it, and also while the file can't be written.

        Raises (when awaited):
            Unavailable: not even reading works.
        """
        return self._put(Write(function, asyncio.get_running_loop().create_future(), reads=True))

    async def flush(self) -> int:
        """Try the pending insisted writes once more. Returns how many are still pending."""
        again = [write for write in self._unsettled.values() if write.failed]
        for write in again:
            write.failed, write.error = False, None
            write.future = asyncio.get_running_loop().create_future()
            self._enqueue(write)
        for write in again:
            await write.future
        return self.unwritten

    @property
    def unwritten(self) -> int:
        """Insisted writes that have failed and are pending."""
        return sum(write.failed for write in self._unsettled.values())

    async def close(self) -> None:
        """Finish what is queued, close the file, end the thread. What is still unwritten is lost with the process. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._writer.stop(self._disconnect)

    def _put(self, write: Write) -> asyncio.Future[T]:
        for key in write.keys:
            if (older := self._unsettled.get(key)) is not None:
                write.superseded[key] = older
            self._unsettled[key] = write
        self._enqueue(write)
        return write.future

    def _enqueue(self, write: Write) -> None:
        if self._closed:
            write.error = Unavailable(f"the store {self.path} is closed")
            self._deliver([write])
        else:
            self._writer.put(write)

    def _deliver(self, batch: list[Write]) -> None:
        for write in batch:
            failed = write.failed = write.error is not None
            for key in write.keys:
                if self._unsettled.get(key) is write:
                    self._settle(key, write)
            write.superseded.clear()
            if not write.reads:
                self._report(write.error)
            if write.future.done():
                pass  # whoever waited was cancelled
            elif write.insisted:
                write.future.set_result(not failed)
            elif write.error is not None:
                write.future.set_exception(write.error)
            else:
                write.future.set_result(write.value)

    def _settle(self, key: Hashable, write: Write) -> None:
        """The newest write of `key` has ended. If it failed, it is pending, or the older one that it would have replaced is."""
        older = write.superseded.get(key)
        if write.failed and write.insisted:
            return
        if write.failed and older is not None and older.failed:
            self._unsettled[key] = older
        else:
            del self._unsettled[key]

    def _report(self, error: BaseException | None) -> None:
        if error is not None and not self.problem:
            _log.error("the store can't be written: nothing new is acquired until it can, releasing goes on", error=str(error))
        elif error is None and self.problem:
            _log.info("the store can be written again", path=str(self.path))
        self.problem = "" if error is None else str(error)

    # ---- the writer's side

    def _commit(self, batch: list[Write]) -> None:
        _assert_off_loop()
        try:
            self._transaction(batch)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and _code(error) in _REOPEN_AFTER:
                self._disconnect()
            if len(batch) > 1:
                # One of them is at fault, or all are: each for itself.
                for write in batch:
                    self._commit([write])
            else:
                self._fail(batch[0], error)

    def _transaction(self, batch: list[Write]) -> None:
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            values = [write.function(connection) for write in batch]
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise
        for write, value in zip(batch, values, strict=True):
            write.value = value

    def _fail(self, write: Write, error: Exception) -> None:
        write.error = error
        if not isinstance(error, sqlite3.Error | OSError | Unavailable | _CorruptError):
            return
        if write.reads:
            try:
                write.value, write.error = self._read_copy(write.function), None
            except (sqlite3.Error, OSError) as unreadable:
                write.error = Unavailable(f"the store {self.path} can't be read: {unreadable}")
        elif not isinstance(error, OrlopError):
            advice = MAKE_ROOM if isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_FULL else LOOK_AT_THE_DISK
            write.error = Unavailable(f"the store {self.path} can't be written: {error}; {advice}")
            write.error.__cause__ = error

    def _connect(self) -> sqlite3.Connection:
        if not self.writable:
            raise Unavailable(f"the store {self.path} is open for reading only")
        if self._connection is None:
            try:
                self._connection = self._open()
            except _CorruptError as error:
                self._replace(error.aside, str(error))
                self._connection = self._open()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        _create(self.path)
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            # Exclusive: the index of the WAL is then on the heap, not in a file beside it that a full disk couldn't hold.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            # Pages of the journal, which is appended to and seldom read, would fill the 2 MB that SQLite keeps otherwise.
            connection.execute("PRAGMA cache_size = -256")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            _check(connection)
            schema.migrate(connection)
            if self._boot_id:
                schema.begin_boot(connection, self._boot_id)
        except sqlite3.Error as error:
            with contextlib.closing(connection):
                if _code(error) in _NODE_IS_AT_FAULT:
                    raise
                # Now, because closing plays the WAL into the file and removes it.
                raise _CorruptError(str(error), self._set_aside()) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self) -> Path:
        aside = self._aside()
        for source, target in ((self.path, aside), (_wal(self.path), _wal(aside))):
            # An empty log is the one that this connection has just begun.
            if source.exists() and source.stat().st_size:
                shutil.copy(source, target)
        return aside

    def _aside(self) -> Path:
        return self.path.with_name(f"{self.path.name}.corrupt-{self._clock():.3f}")

    def _replace(self, aside: Path, reason: str) -> None:
        """Put a new file in place of the corrupt one, with what can be read of it. It changes nothing, or all at once."""
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.unlink(missing_ok=True)
        _create(fresh)
        with _private_copy(aside, self._scratch) as copy, contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as new:
            schema.migrate(new)
            saved = _salvage(copy, new)
        _wal(self.path).unlink(missing_ok=True)  # or SQLite would play it into the new file
        fresh.replace(self.path)
        metrics.ledger_quarantined.inc()
        _log.error("a store file was corrupt: a new one is begun", path=str(self.path), aside=str(aside), error=reason, rows_saved=saved)

    def doubt(self) -> Path:
        """Make an empty file where a copy would be if this one were corrupt. Blocks: for a thread."""
        marker = self._aside()
        marker.touch()
        return marker

    def corrupt_files(self) -> list[Path]:
        """Copies of corrupt files that an operator has not looked at and removed yet. Blocks: for a thread."""
        return sorted(self.path.parent.glob(f"{self.path.name}.corrupt-*[0-9]"))

    def _read_copy(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with _private_copy(self.path, self._scratch) as copy:
            try:
                _check(copy)
                schema.migrate(copy)
                return function(copy)
            except sqlite3.Error:
                with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as saved:
                    schema.migrate(saved)
                    _salvage(copy, saved)
                    return function(saved)


class _CorruptError(Exception):
    """The file can't be what SQLite wrote. `aside` is a copy of it as it was found."""

    def __init__(self, reason: str, aside: Path) -> None:
        super().__init__(reason)
        self.aside = aside


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _assert_off_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise AssertionError("a database was used on the event loop's thread")


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for an error that SQLite itself didn't raise."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _check(connection: sqlite3.Connection) -> None:
    (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise sqlite3.DatabaseError(result)


@contextlib.contextmanager
def _private_copy(path: Path, scratch: Path | None) -> Iterator[sqlite3.Connection]:
    """A connection to a copy of the file as its last commit left it; an empty database if there is none.

    A copy, because SQLite can't read a WAL without being able to write beside it, and because evidence stays untouched.
    """
    with tempfile.TemporaryDirectory(prefix="orlop-store-", dir=scratch) as directory:
        target = Path(directory) / path.name
        for source, copy in ((path, target), (_wal(path), _wal(target))):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(source, copy)
        with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as connection:
            yield connection


def _salvage(damaged: sqlite3.Connection, into: sqlite3.Connection) -> int:
    """Copy every row that can still be read, in one transaction. Returns their number."""
    saved = 0
    into.execute("BEGIN IMMEDIATE")
    for table in ("meta", "resources", "records", "quarantine"):
        for names, row in _readable_rows(damaged, table):
            columns, places = ", ".join(names), ", ".join("?" * len(row))
            with contextlib.suppress(sqlite3.IntegrityError):  # a value of the wrong type: damaged too
                saved += into.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({places})", row).rowcount
    into.execute("COMMIT")
    return saved


def _readable_rows(damaged: sqlite3.Connection, table: str) -> Iterator[tuple[list[str], tuple[Any, ...]]]:
    # From both ends, as a bad page in the middle stops a scan.
    for direction in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.Error):
            rows = damaged.execute(f"SELECT * FROM {table} ORDER BY rowid {direction}")
            names = [column[0] for column in rows.description]
            while (row := rows.fetchone()) is not None:
                yield names, row
            return
