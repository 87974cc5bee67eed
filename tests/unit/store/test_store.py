"""Opening: the lock, a new boot, rows nobody understands, a look from outside."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent import metrics, timeouts
from agent.aio import in_thread
from agent.errdefs import FailedPrecondition, Unavailable
from agent.store.kinds import Kind
from agent.store.ledger import Intent, State
from agent.store.store import Store
from tests.unit.store.conftest import Clock, Directories, contents, databases


async def test_second_daemon_is_refused(store: Store, directories: Directories, clock: Clock, tmp_path: Path) -> None:
    for other in (directories, Directories(directories.state, tmp_path / "x"), Directories(tmp_path / "y", directories.root)):
        with pytest.raises(FailedPrecondition, match="another orlop daemon uses"):
            await other.open(clock)
    await store.close()
    again = await directories.open(clock)
    await again.close()


async def test_read_only_is_refused_while_the_daemon_runs(store: Store, directories: Directories) -> None:
    with pytest.raises(FailedPrecondition):
        await Store.open_read_only(directories.state, directories.root)


async def test_directory_that_cant_be_used(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="can't be opened"):
        await Directories(tmp_path / "run", tmp_path / "file" / "lib").open(clock)
    store = await Directories(tmp_path / "run", tmp_path / "lib").open(clock)  # no lock was left behind
    await store.close()


@pytest.mark.field_fault("19")
async def test_reboot_ends_what_a_reboot_ends(store: Store, directories: Directories, clock: Clock) -> None:
    await store.ledger.intend(*(Intent(kind, "k", sandbox="s") for kind in (Kind.NETNS, Kind.SHIM, Kind.CNI, Kind.SNAPSHOT)))
    await store.boot_records("pods").put("p", b"1")
    await store.disk_records("images").put("i", b"1")
    await store.close()
    again = await directories.open(clock, boot_id="boot 2")
    assert {resource.kind for resource in again.ledger.all()} == {Kind.CNI, Kind.SNAPSHOT}
    assert await again.boot_records("pods").load() == {}
    assert await again.disk_records("images").load() == {"i": b"1"}
    assert len(await again.ledger.history(sandbox="s")) == 4
    await again.close()


async def test_boot_id_is_the_kernels(directories: Directories, clock: Clock) -> None:
    for _ in range(2):
        store = await Store.open(directories.state, directories.root, clock=clock)
        (stored,) = await databases(store)[0].read(lambda c: c.execute("SELECT value FROM meta").fetchone())
        await store.close()
        assert stored + "\n" == await in_thread(Path("/proc/sys/kernel/random/boot_id").read_text)


BAD_ROWS = [
    pytest.param("UPDATE resources SET kind = 'wormhole' WHERE key = 'bad'", "'wormhole' is not a valid Kind", id="unknown kind"),
    pytest.param("UPDATE resources SET state = 'dreaming' WHERE key = 'bad'", "'dreaming' is not a valid State", id="unknown state"),
    pytest.param("UPDATE resources SET data = '{torn' WHERE key = 'bad'", "Expecting property name", id="torn data"),
    pytest.param("UPDATE resources SET data = '[]' WHERE key = 'bad'", "data is list", id="data is no object"),
    pytest.param("UPDATE resources SET error = CAST(x'ff' AS TEXT) WHERE key = 'bad'", "can't decode", id="text is not UTF-8"),
]


@pytest.mark.field_fault("24")
@pytest.mark.parametrize(("damage", "reason"), BAD_ROWS)
async def test_row_nobody_understands_is_set_aside(store: Store, directories: Directories, clock: Clock, damage: str, reason: str) -> None:
    await store.ledger.intend(Intent(Kind.FIFO, "good", sandbox="s"), Intent(Kind.FIFO, "bad", sandbox="s"))
    await databases(store)[0].write(lambda c: c.execute(damage))
    await store.close()

    looked = await Store.open_read_only(directories.state, directories.root, clock=clock)
    assert [resource.key for resource in looked.ledger.all()] == ["good"]
    await looked.close()
    for _ in range(2):
        again = await directories.open(clock)
        assert [resource.key for resource in again.ledger.all()] == ["good"]
        (bad,) = await again.quarantined()
        assert bad.name.endswith(" bad")
        assert reason in bad.reason
        assert b"bad" in bad.row
        assert metrics.registry.get_sample_value("orlop_ledger_quarantined") == 1
        await again.close()


@pytest.mark.field_fault("24")
@pytest.mark.parametrize("name", ["run/boot.db", "lib/disk.db"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"\xde\xad" * 5000, id="garbage"),
        pytest.param(lambda data: data[:5000], id="torn"),
        pytest.param(lambda data: b"", id="emptied"),
    ],
)
async def test_daemon_starts_whatever_is_in_the_files(
    store: Store, directories: Directories, clock: Clock, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    await store.ledger.intend(Intent(Kind.FIFO, "f", sandbox="s"), Intent(Kind.CNI, "c", sandbox="s"))
    await store.close()
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    again = await directories.open(clock)
    assert len(again.ledger.all()) >= 1, "the other file is as it was"
    await again.ledger.intend(Intent(Kind.FIFO, "new", sandbox="s"), Intent(Kind.CNI, "new", sandbox="s"))
    assert metrics.registry.get_sample_value("orlop_ledger_quarantined") == len(list(path.parent.glob("*.corrupt-*")))
    await again.close()


async def test_repaired_ledger_still_owns_what_could_be_read(store: Store, directories: Directories, clock: Clock) -> None:
    await store.ledger.intend(*(Intent(Kind.SNAPSHOT, f"{n:03}", sandbox="s", data={"pad": "x" * 300}) for n in range(200)))
    await store.close()
    path = directories.root / "disk.db"
    data = bytearray(path.read_bytes())
    page = data.index(b"snapshot100sintended") // 4096 * 4096
    data[page : page + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    again = await directories.open(clock)
    assert 170 < len(again.ledger.all()) < 200
    await again.close()


async def test_file_of_a_newer_version(store: Store, directories: Directories, clock: Clock) -> None:
    await store.close()
    with closing(sqlite3.connect(directories.root / "disk.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="newer"):
            await directories.open(clock)


async def test_start_with_a_file_that_cant_be_written(store: Store, directories: Directories, clock: Clock) -> None:
    """Invariant 11: what is owned is known and can be released, nothing new is acquired, and it mends by itself."""
    await store.ledger.intend(Intent(Kind.CNI, "c", sandbox="s"), Intent(Kind.CNI, "d", sandbox="s"))
    await store.close()
    with closing(sqlite3.connect(directories.root / "disk.db", isolation_level=None)) as intruder:
        intruder.execute("PRAGMA locking_mode = EXCLUSIVE")
        intruder.execute("BEGIN IMMEDIATE")
        intruder.execute("INSERT INTO meta VALUES ('x', 'y')")
        again = await directories.open(clock)
        assert [resource.key for resource in again.ledger.all()] == ["c", "d"]
        assert "database is locked" in again.problem
        with pytest.raises(Unavailable):
            await again.ledger.intend(Intent(Kind.CNI, "new", sandbox="s"))
        await again.ledger.intend(Intent(Kind.NETNS, "new", sandbox="s"))
        await again.ledger.drop(Kind.CNI, "c")
        intruder.execute("ROLLBACK")
    assert await again.flush() == 0
    assert again.problem == ""
    await again.close()
    last = await directories.open(clock)
    assert {resource.key for resource in last.ledger.all()} == {"d", "new"}
    await last.close()


async def test_read_only(store: Store, directories: Directories, clock: Clock) -> None:
    await store.ledger.intend(Intent(Kind.CNI, "c", sandbox="s"), Intent(Kind.NETNS, "n", sandbox="s"))
    await store.ledger.hold(Kind.NETNS, "n", {"inode": 1})
    await store.disk_records("images").put("i", b"1")
    await store.close()
    before = contents(directories.state, directories.root)
    looked = await Store.open_read_only(directories.state, directories.root, clock=clock)
    assert [(resource.key, resource.state) for resource in looked.ledger.owned(sandbox="s")] == [("c", State.INTENDED), ("n", State.HELD)]
    assert len(await looked.ledger.history(sandbox="s")) == 3
    assert await looked.disk_records("images").load() == {"i": b"1"}
    with pytest.raises(Unavailable, match="reading only"):
        await looked.ledger.intend(Intent(Kind.CNI, "x", sandbox="s"))
    await looked.close()
    assert contents(directories.state, directories.root) == before


async def test_read_only_on_a_node_that_never_ran_a_daemon(tmp_path: Path) -> None:
    looked = await Store.open_read_only(tmp_path / "run", tmp_path / "lib")
    assert looked.ledger.all() == []
    await looked.close()
    assert contents(tmp_path) == {}


async def test_nothing_else_waits_for_a_disk_that_hangs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 14. The boot database goes on too: it has a thread of its own."""
    await store.ledger.intend(Intent(Kind.CNI, "c", sandbox="s"))
    hang = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stall(connection: sqlite3.Connection) -> None:
        asyncio.run_coroutine_threadsafe(hang.wait(), loop).result()

    stalled = databases(store)[1].write(stall)
    await asyncio.sleep(0)
    started = time.monotonic()
    assert [resource.key for resource in store.ledger.owned(sandbox="s")] == ["c"]
    assert store.ledger.due(0) == []
    await store.ledger.intend(Intent(Kind.NETNS, "n", sandbox="s"))
    await store.ledger.hold(Kind.NETNS, "n")
    assert not stalled.done()
    monkeypatch.setattr(timeouts, "STORE_CLOSE", 0)
    await store.close()
    assert time.monotonic() - started < 5
    hang.set()
    await stalled
