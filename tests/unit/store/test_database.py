"""One file: transactions, batches, what happens when it can't be written, when it is corrupt, when it is only looked at."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from agent.errdefs import Unavailable
from agent.store.database import Database
from agent.store.writer import Commit, Deliver, Write
from tests.unit.store.conftest import Clock, contents, make_unwritable, make_writable


def _put(key: str, data: bytes = b"x") -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute("INSERT OR REPLACE INTO records VALUES ('b', ?, 0, ?)", (key, data))


def _remove(key: str) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute("DELETE FROM records WHERE key = ?", (key,))


def _nonsense(connection: sqlite3.Connection) -> object:
    return connection.execute("INSERT INTO nowhere VALUES (1)")


def _keys(connection: sqlite3.Connection) -> list[str]:
    return [key for (key,) in connection.execute("SELECT key FROM records ORDER BY key")]


def _open(path: Path, **options: object) -> Database:
    return Database(path, synchronous="OFF", clock=Clock(), **options)  # type: ignore[arg-type]  # a test's shorthand


async def test_write_is_there_for_the_next_one_who_opens(tmp_path: Path) -> None:
    database = _open(tmp_path / "sub" / "a.db")
    await database.write(_put("one"))
    await database.close()
    assert stat.S_IMODE((tmp_path / "sub" / "a.db").stat().st_mode) == 0o600
    again = _open(tmp_path / "sub" / "a.db")
    assert await again.read(_keys) == ["one"]
    await again.close()


@asynccontextmanager
async def _queued(database: Database) -> AsyncIterator[list[str]]:
    """What is written inside this block waits, and is then there all at once. Yields the statements that SQLite ran for it."""
    busy, go_on, statements = threading.Event(), threading.Event(), list[str]()

    def block(connection: sqlite3.Connection) -> None:
        busy.set()
        go_on.wait()
        connection.set_trace_callback(statements.append)

    blocker = database.write(block)
    await asyncio.to_thread(busy.wait)
    yield statements
    go_on.set()
    await blocker


async def test_writes_keep_their_order_and_share_a_transaction(database: Database) -> None:
    """What waits while the writer is busy goes into one commit: on a disk, one fsync."""
    async with _queued(database) as statements:
        writes = [database.write(_put("k", str(number).encode())) for number in range(5)]
    await asyncio.gather(*writes)
    assert statements.count("BEGIN IMMEDIATE") == 1
    assert sum(statement.startswith("INSERT") for statement in statements) == 5
    assert await database.read(lambda c: c.execute("SELECT data FROM records").fetchall()) == [(b"4",)]


async def test_one_bad_write_doesnt_spoil_the_batch(database: Database) -> None:
    async with _queued(database):
        writes = [database.write(function) for function in (_put("a"), _nonsense, _put("b"))]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(outcomes[1], Unavailable)
    assert await database.read(_keys) == ["a", "b"]


async def test_failed_write_is_undone_as_a_whole(database: Database) -> None:
    def half(connection: sqlite3.Connection) -> None:
        _put("a")(connection)
        _nonsense(connection)

    with pytest.raises(Unavailable):
        await database.write(half)
    assert await database.read(_keys) == []


async def test_cancelled_caller_doesnt_undo_the_write(database: Database) -> None:
    write = database.write(_put("a"))
    write.cancel()
    assert await database.read(_keys) == ["a"]


async def test_never_on_the_event_loop(tmp_path: Path) -> None:
    class OnTheLoop:
        def __init__(self, name: str, commit: Commit, deliver: Deliver) -> None:
            self._commit = commit

        def put(self, write: Write) -> None:
            self._commit([write])

        async def stop(self, last: Callable[[], None]) -> None: ...

    with pytest.raises(AssertionError, match="event loop"):
        await _open(tmp_path / "a.db", writer=OnTheLoop).write(_put("a"))


async def test_closed_database(tmp_path: Path) -> None:
    database = _open(tmp_path / "a.db")
    await database.close()
    with pytest.raises(Unavailable, match="is closed"):
        await database.write(_put("a"))
    assert await database.insist(_put("a"), key="a") is False
    assert await database.flush() == 1
    await database.close()


async def test_unwritable(database: Database) -> None:
    await database.write(_put("old"))
    await make_unwritable(database)
    with pytest.raises(Unavailable, match=r"test\.db can't be written: database or disk is full"):
        await database.write(_put("new"))
    assert "disk is full" in database.problem
    assert await database.insist(_remove("old"), key="old") is False
    assert database.unwritten == 1
    assert await database.flush() == 1

    await make_writable(database)
    assert database.problem == ""
    assert await database.flush() == 0
    assert await database.read(_keys) == []


async def test_later_write_supersedes_a_pending_one(database: Database) -> None:
    await make_unwritable(database)
    await database.insist(_remove("a"), key="a")
    await make_writable(database)
    await database.write(_put("a"), keys=("a",))
    assert await database.flush() == 0
    assert await database.read(_keys) == ["a"]


async def test_later_write_that_fails_leaves_the_pending_one(database: Database) -> None:
    await database.write(_put("a"))
    await make_unwritable(database)
    await database.insist(_remove("a"), key="a")
    with pytest.raises(Unavailable):
        await database.write(_put("a", b"new"), keys=("a",))
    assert database.unwritten == 1
    await make_writable(database)
    assert await database.flush() == 0
    assert await database.read(_keys) == []


async def test_pending_writes_of_a_key_become_the_last_one(database: Database) -> None:
    await make_unwritable(database)
    futures = [database.insist(_put("a", data), key="a") for data in (b"1", b"2", b"3")]
    assert await asyncio.gather(*futures) == [False, False, False]
    assert database.unwritten == 1
    await make_writable(database)
    await database.flush()
    assert await database.read(lambda c: c.execute("SELECT data FROM records").fetchall()) == [(b"3",)]


async def test_success_of_an_older_write_doesnt_settle_a_newer_one(database: Database) -> None:
    async with _queued(database):
        older, newer = database.insist(_put("a"), key="a"), database.insist(_nonsense, key="a")
    assert await asyncio.gather(*[older, newer]) == [True, False]
    assert database.unwritten == 1


async def test_no_file_but_the_database_and_its_log(database: Database, tmp_path: Path) -> None:
    """No shared memory: a full disk could not hold it, and nobody else may open the file of a running daemon."""
    await database.write(_put("a"))
    assert {path.name for path in contents(tmp_path)} == {"test.db", "test.db-wal"}
    with closing(sqlite3.connect(tmp_path / "test.db", timeout=0)) as stranger, pytest.raises(sqlite3.OperationalError, match="locked"):
        stranger.execute("SELECT * FROM records")


async def test_file_that_another_process_locks_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    database = _open(path)
    await database.write(_put("a"))
    await database.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as intruder:
        intruder.execute("PRAGMA locking_mode = EXCLUSIVE")
        intruder.execute("BEGIN IMMEDIATE")
        intruder.execute("INSERT INTO records VALUES ('b', 'uncommitted', 0, x'')")
        database = _open(path)
        assert await database.read(_keys) == ["a"]
        with pytest.raises(Unavailable, match="locked"):
            await database.write(_put("b"))
        intruder.execute("ROLLBACK")
    await database.write(_put("b"))
    assert await database.read(_keys) == ["a", "b"]
    await database.close()


async def test_directory_that_cant_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    database = _open(tmp_path / "file" / "a.db")
    with pytest.raises(Unavailable, match="can't be written"):
        await database.write(_put("a"))
    await database.close()


# ---- corruption


async def _filled(path: Path, rows: int = 400) -> None:
    database = _open(path)

    def fill(connection: sqlite3.Connection) -> None:
        for number in range(rows):
            _put(f"{number:04}", b"y" * 500)(connection)

    await database.write(fill)
    await database.close()


def _aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.corrupt-*"))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"not a database at all" * 100, id="garbage"),
        pytest.param(lambda data: bytes(4096) + data[4096:], id="zeroed first page"),
        pytest.param(lambda data: data[: len(data) // 2], id="torn in half"),
        pytest.param(lambda data: data[:700], id="torn first page"),
    ],
)
async def test_corrupt_file_is_set_aside_and_begun_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.db"
    await _filled(path)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    database = _open(path)
    await database.write(_put("new"))
    assert "new" in await database.read(_keys)
    await database.close()
    assert [file.read_bytes() for file in _aside(path)] == [damaged]
    again = _open(path)
    assert "new" in await again.read(_keys)
    await again.close()
    assert len(_aside(path)) == 1


async def test_log_of_a_corrupt_file_goes_with_it(tmp_path: Path) -> None:
    """Left behind, it would be played into the new file; what it holds is saved too."""
    (tmp_path / "killed").mkdir()
    living = _open(tmp_path / "a.db")
    await living.write(_put("checkpointed"))
    await living.close()
    living = _open(tmp_path / "a.db")
    await living.write(_put("in the log"))
    for path, data in contents(tmp_path / "killed", tmp_path).items():
        (tmp_path / "killed" / path.name).write_bytes(data)
    await living.close()

    path = tmp_path / "killed" / "a.db"
    damaged = bytearray(path.read_bytes())
    damaged[4096:8192] = b"\xff" * 4096
    path.write_bytes(damaged)
    log = path.with_name("a.db-wal").read_bytes()
    database = _open(path)
    assert "in the log" in await database.read(_keys)
    await database.close()
    assert [file.read_bytes() for file in _aside(path)] == [damaged, log], "as they were found"


async def test_log_that_closing_could_not_remove(tmp_path: Path) -> None:
    """A disk that was full when the corrupt file was closed."""
    path = tmp_path / "a.db"
    living = _open(path)
    await living.write(_put("a"))
    assert path.with_name("a.db-wal").stat().st_size
    await asyncio.to_thread(living._replace, await asyncio.to_thread(living._set_aside), "no reason")
    assert {file.name for file in contents(tmp_path)} == {"a.db", "a.db.corrupt-1000000.000", "a.db.corrupt-1000000.000-wal"}
    await living.close()


async def test_rows_around_a_bad_page_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await _filled(path)
    data = bytearray(path.read_bytes())
    middle = data.index(b"b0200") // 4096 * 4096
    data[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    database = _open(path)
    saved = set(await database.read(_keys))
    await database.close()
    assert {"0000", "0399"} <= saved
    assert 350 < len(saved) < 400


async def test_empty_file_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    database = _open(tmp_path / "a.db")
    assert await database.read(_keys) == []
    await database.close()
    assert _aside(tmp_path / "a.db") == []


async def test_damage_during_operation_is_repaired_at_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await _filled(path)
    database = _open(path)
    await database.read(lambda c: c.execute("PRAGMA shrink_memory").fetchone())  # or it would not look at the file again
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.seek(8192)
        file.write(b"\xff" * (size - 8192))
    with pytest.raises(Unavailable, match="malformed"):
        await database.write(lambda c: c.execute("SELECT sum(length(data)) FROM records").fetchone())
    await database.write(_put("new"))
    assert "new" in await database.read(_keys)
    await database.close()
    assert len(_aside(path)) == 1


# ---- another process' look


async def test_read_only_sees_the_wal_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    living = _open(path)
    await living.write(_put("a"))  # still in the WAL
    before = contents(tmp_path)
    onlooker = _open(path, writable=False)
    assert await onlooker.read(_keys) == ["a"]
    with pytest.raises(Unavailable, match="reading only"):
        await onlooker.write(_put("b"))
    await onlooker.close()
    assert contents(tmp_path) == before
    await living.close()


async def test_read_only_without_a_file(tmp_path: Path) -> None:
    onlooker = _open(tmp_path / "a.db", writable=False)
    assert await onlooker.read(_keys) == []
    await onlooker.close()
    assert contents(tmp_path) == {}


async def test_read_only_reads_what_can_be_read_of_a_corrupt_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await _filled(path)
    data = bytearray(path.read_bytes())
    middle = data.index(b"b0200") // 4096 * 4096
    data[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    onlooker = _open(path, writable=False)
    assert len(await onlooker.read(_keys)) > 350
    await onlooker.close()
    assert path.read_bytes() == data
