"""The journal's bounds, and finding an owner's entries in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from agent.store import journal, schema
from agent.store.journal import Entry


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema.migrate(connection)
        yield connection


def _entry(number: int, at: float, detail: str = "") -> Entry:
    return Entry(at, "cni", f"key {number}", "sandbox", "", "held", detail)


def _keys(connection: sqlite3.Connection) -> list[str]:
    return [key for (key,) in connection.execute("SELECT key FROM journal ORDER BY id")]


def test_what_is_older_than_a_week_goes(connection: sqlite3.Connection) -> None:
    for day in range(10):
        journal.append(connection, _entry(day, at=day * 86400.0))
    journal.prune(connection, now=9 * 86400.0)
    assert _keys(connection) == [f"key {day}" for day in range(2, 10)]


def test_all_of_it_can_be_too_old(connection: sqlite3.Connection) -> None:
    journal.append(connection, _entry(1, at=0.0))
    journal.prune(connection, now=30 * 86400.0)
    assert _keys(connection) == []
    journal.prune(connection, now=30 * 86400.0)
    journal.append(connection, _entry(2, at=30 * 86400.0))
    assert _keys(connection) == ["key 2"]


def test_size_is_bounded_without_anybody_pruning(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 100_000)
    for number in range(1000):
        journal.append(connection, _entry(number, at=1.0, detail="x" * 400))
    keys = _keys(connection)
    (size,) = connection.execute("SELECT sum(length(detail)) FROM journal").fetchone()
    assert size < 100_000 + journal.PRUNE_EVERY * 500
    assert keys == [f"key {number}" for number in range(1000 - len(keys), 1000)]


def test_what_the_journal_knows(connection: sqlite3.Connection) -> None:
    for number in range(5):
        journal.append(connection, Entry(1.0, "fifo", f"key {number}", f"s{number}", f"c{number}", "held"))
    names = ["key 1", "s2", "c4", "", "nobody", "key 9"]
    assert journal.known(connection, 0, names, 4) == (4, {"key 1", "s2"})
    assert journal.known(connection, 4, names, 4) == (5, {"c4"})
    assert journal.known(connection, 5, names, 4) == (0, set())


def test_pages(connection: sqlite3.Connection) -> None:
    for number in range(7):
        owner = ("mine", "") if number % 2 else ("other", "c1")
        journal.append(connection, Entry(float(number), "fifo", f"key {number}", *owner, "held"))
    position, found = 0, []
    for _ in range(4):
        position, entries = journal.page(connection, position, ("mine", "", ""), limit=3)
        found += entries
    assert position == 0
    assert [entry.key for entry in found] == ["key 1", "key 3", "key 5"]


@pytest.mark.parametrize(
    ("owner", "count"),
    [
        pytest.param(("s", "", ""), 2, id="sandbox"),
        pytest.param(("", "c", ""), 1, id="container"),
        pytest.param(("", "", "k3"), 1, id="key"),
        pytest.param(("s", "", "k3"), 3, id="either"),
        pytest.param(("", "", ""), 0, id="nothing asked"),
    ],
)
def test_who_is_meant(connection: sqlite3.Connection, owner: tuple[str, str, str], count: int) -> None:
    journal.append(connection, Entry(1.0, "fifo", "k1", "s", "c", "held"))
    journal.append(connection, Entry(1.0, "netns", "k2", "s", "", "held"))
    journal.append(connection, Entry(1.0, "ingest", "k3", "", "", "held"))
    assert len(journal.page(connection, 0, owner, 100)[1]) == count


def test_to_json() -> None:
    assert Entry(1.5, "cni", "k", "s", "c", "failed", "no").to_json() == {
        "at": 1.5, "kind": "cni", "key": "k", "sandbox": "s", "container": "c", "transition": "failed", "detail": "no",
    }  # fmt: skip
