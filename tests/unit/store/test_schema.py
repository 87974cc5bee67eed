"""Migrations, each with a test of its own, and what a new boot does to a file."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from agent.errdefs import FailedPrecondition
from agent.store import schema


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


def _columns(connection: sqlite3.Connection) -> dict[str, list[str]]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in tables}


def test_migration_1_makes_the_tables(connection: sqlite3.Connection) -> None:
    schema.migrate(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert _columns(connection) == {
        "meta": ["name", "value"],
        "resources": [
            "id", "kind", "key", "sandbox", "container", "state", "data", "attempts", "error", "created", "failed_since", "next_attempt",
        ],
        "records": ["bucket", "key", "crc", "data"],
        "journal": ["id", "at", "kind", "key", "sandbox", "container", "transition", "detail", "total"],
        "quarantine": ["id", "at", "origin", "name", "reason", "row"],
    }  # fmt: skip


def test_each_migration_has_a_test() -> None:
    for number in range(1, len(schema.MIGRATIONS) + 1):
        assert any(re.match(rf"test_migration_{number}_", name) for name in globals()), f"migration {number} has no test"


def test_docstring_draws_every_column(connection: sqlite3.Connection) -> None:
    schema.migrate(connection)
    words = set(re.findall(r"\w+", schema.__doc__ or ""))
    for table, columns in _columns(connection).items():
        assert {table, *columns} <= words


def test_up_to_date_file_is_left_alone(connection: sqlite3.Connection) -> None:
    schema.migrate(connection)
    connection.execute("INSERT INTO meta VALUES ('a', 'b')")
    schema.migrate(connection)
    assert connection.execute("SELECT * FROM meta").fetchall() == [("a", "b")]


def test_file_of_a_newer_version_is_refused(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    with pytest.raises(FailedPrecondition, match="newer"):
        schema.migrate(connection)


def _fill(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO records VALUES ('pods', 'a', 1, x'00')")
    connection.execute("INSERT INTO journal VALUES (1, 1.0, 'cni', 'k', 's', '', 'held', '', 10)")


def test_first_boot_keeps_what_is_there(connection: sqlite3.Connection) -> None:
    """As after a repair that could save everything but the boot id: better released once more than forgotten."""
    schema.migrate(connection)
    _fill(connection)
    schema.begin_boot(connection, "one")
    assert connection.execute("SELECT count(*) FROM records").fetchone() == (1,)


def test_same_boot_keeps_everything(connection: sqlite3.Connection) -> None:
    schema.migrate(connection)
    schema.begin_boot(connection, "one")
    _fill(connection)
    schema.begin_boot(connection, "one")
    assert connection.execute("SELECT count(*) FROM records").fetchone() == (1,)


def test_other_boot_drops_all_but_the_journal(connection: sqlite3.Connection) -> None:
    schema.migrate(connection)
    schema.begin_boot(connection, "one")
    _fill(connection)
    schema.begin_boot(connection, "two")
    assert connection.execute("SELECT count(*) FROM records").fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM journal").fetchone() == (1,)
    assert connection.execute("SELECT value FROM meta").fetchall() == [("two",)]
