"""Stores and databases in a temporary directory, and a way to make one unwritable that needs no root."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.store.database import Database
from agent.store.store import Store


@dataclass
class Clock:
    """Unix seconds, moved by the test."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Directories:
    state: Path
    root: Path

    async def open(self, clock: Callable[[], float], boot_id: str = "boot 1") -> Store:
        return await Store.open(self.state, self.root, clock=clock, boot_id=boot_id)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return Directories(tmp_path / "run", tmp_path / "lib")


@pytest.fixture
async def store(directories: Directories, clock: Clock) -> AsyncIterator[Store]:
    store = await directories.open(clock)
    yield store
    await store.close()


@pytest.fixture
async def database(tmp_path: Path, clock: Clock) -> AsyncIterator[Database]:
    database = Database(tmp_path / "test.db", synchronous="OFF", clock=clock)
    yield database
    await database.close()


_CHANGES = [(table, verb) for table in ("resources", "records") for verb in ("INSERT", "UPDATE", "DELETE")]


async def make_unwritable(database: Database) -> None:
    """From now on SQLite refuses each change of a row, as it does on a full disk."""

    def refuse(connection: sqlite3.Connection) -> None:
        for table, verb in _CHANGES:
            connection.execute(
                f"CREATE TEMP TRIGGER refuse_{table}_{verb} BEFORE {verb} ON main.{table} "
                "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )

    await database.write(refuse)


async def make_writable(database: Database) -> None:
    def allow(connection: sqlite3.Connection) -> None:
        for table, verb in _CHANGES:
            connection.execute(f"DROP TRIGGER temp.refuse_{table}_{verb}")

    await database.write(allow)


def contents(*directories: Path) -> dict[Path, bytes]:
    """Every file in these directories."""
    return {path: path.read_bytes() for directory in directories for path in directory.iterdir() if path.is_file()}


def databases(store: Store) -> tuple[Database, Database]:
    """The boot and the disk database of a store."""
    return store._boot, store._disk
