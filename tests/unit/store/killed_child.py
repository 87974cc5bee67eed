"""A process that uses a store and kills itself, or is killed, at a chosen moment. Run by `test_kill.py`.

python -m tests.unit.store.killed_child STATE_DIR ROOT_DIR MOMENT
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from agent.store.kinds import Kind
from agent.store.ledger import Intent
from agent.store.store import Store
from tests.unit.store.conftest import databases

NETNS, CNI = (Kind.NETNS, "n"), (Kind.CNI, "c")


def die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


async def _open() -> Store:
    return await Store.open(Path(sys.argv[1]), Path(sys.argv[2]), boot_id="b")


async def _intended() -> Store:
    store = await _open()
    await store.ledger.intend(Intent(*NETNS, sandbox="s"), Intent(*CNI, sandbox="s"))
    return store


async def after_intend() -> None:
    await _intended()
    die()


async def after_hold() -> None:
    store = await _intended()
    await store.ledger.hold(*NETNS, {"inode": 7})
    await store.ledger.hold(*CNI, {"conf": "x"})
    die()


async def after_failed() -> None:
    store = await _intended()
    await store.ledger.failed(*NETNS, "busy", next_attempt=1.0)
    await store.ledger.failed(*CNI, "busy", next_attempt=1.0)
    die()


async def after_drop() -> None:
    store = await _intended()
    await store.ledger.drop(*NETNS)
    await store.ledger.drop(*CNI)
    die()


async def after_records() -> None:
    store = await _open()
    for records in (store.boot_records("b"), store.disk_records("b")):
        await records.put("kept", b"1")
        await records.put("gone", b"1")
        await records.delete("gone")
    die()


async def inside_a_transaction() -> None:
    store = await _intended()

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM resources")
        die()

    await databases(store)[int(sys.argv[4])].write(half)


async def between_the_two_commits_of_an_intend() -> None:
    store = await _open()
    boot, disk = databases(store)
    boot_is_committed = threading.Event()
    wait = disk.write(lambda _: boot_is_committed.wait() and die())
    intend = asyncio.ensure_future(store.ledger.intend(Intent(*NETNS, sandbox="s"), Intent(*CNI, sandbox="s")))
    await asyncio.sleep(0)
    await boot.read(lambda _: None)
    boot_is_committed.set()
    await asyncio.gather(wait, intend)


async def inside_a_migration() -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
        die()

    with mock.patch("agent.store.schema.migrate", half):
        await _open()


async def before_the_boot_id_is_written() -> None:
    with mock.patch("agent.store.schema.begin_boot", die):
        await _open()


async def _repair(name: str) -> None:
    """Damage one row's page, then open with the function `name` of the repair deadly."""
    store = await _open()
    await store.ledger.intend(*(Intent(Kind.SNAPSHOT, f"{n:03}", sandbox="s", data={"pad": "x" * 300}) for n in range(100)))
    await store.close()
    await asyncio.to_thread(_damage, Path(sys.argv[2], "disk.db"))
    with mock.patch(name, die):
        await _open()


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    page = data.index(b"snapshot050sintended") // 4096 * 4096
    data[page : page + 4096] = b"\xff" * 4096
    path.write_bytes(data)


async def while_a_corrupt_file_is_copied() -> None:
    await _repair("agent.store.database._salvage")


async def before_a_corrupt_file_is_set_aside() -> None:
    await _repair("shutil.copy")


async def before_a_repaired_file_takes_its_place() -> None:
    await _repair("pathlib.Path.replace")


async def whenever_the_parent_likes() -> None:
    """Work without end; say what is about to be done and what is done."""
    store = await _open()

    def say(*words: Any) -> None:
        os.write(1, (" ".join(map(str, words)) + "\n").encode())

    number = 0
    while True:
        number += 1
        for kind in (Kind.NETNS, Kind.CNI):
            say("begin", "intend", kind, number)
            await store.ledger.intend(Intent(kind, str(number), sandbox="s", data={"pad": "x" * 1000}))
            say("done", "intend", kind, number)
            await store.ledger.hold(kind, str(number), {"n": number})
            if number > 20:
                say("begin", "drop", kind, number - 20)
                await store.ledger.drop(kind, str(number - 20))
                say("done", "drop", kind, number - 20)


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[3]]())
