"""What happened to each resource, and when: a bounded journal inside the databases.

A transition is appended in the transaction that makes it. `Ledger.history` reads it for `orlop explain`, the status page
and "leaks over time".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MAX_AGE = 7 * 86400.0
"""Seconds an entry is kept."""
MAX_BYTES = 25_000_000
"""Of one file; the two files together keep 50 MB."""
PRUNE_EVERY = 256
"""Appended rows between two looks at the bounds."""
_ROW_OVERHEAD = 64


@dataclass(frozen=True)
class Entry:
    """One transition. `at` is Unix seconds; `detail` is the error of a failure. `kind` may be one this version doesn't know."""

    at: float
    kind: str
    key: str
    sandbox: str
    container: str
    transition: str
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def append(connection: sqlite3.Connection, entry: Entry) -> None:
    """Append inside the running transaction; now and then, drop what is out of bounds."""
    texts = (entry.kind, entry.key, entry.sandbox, entry.container, entry.transition, entry.detail)
    size = _ROW_OVERHEAD + sum(map(len, texts))
    cursor = connection.execute(
        "INSERT INTO journal (at, kind, key, sandbox, container, transition, detail, total) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ? + coalesce((SELECT total FROM journal ORDER BY id DESC LIMIT 1), 0))",
        (entry.at, *texts, size),
    )
    if cursor.lastrowid is not None and cursor.lastrowid % PRUNE_EVERY == 0:
        prune(connection, entry.at)


def prune(connection: sqlite3.Connection, now: float) -> None:
    """Delete the oldest rows until the rest is younger than MAX_AGE and smaller than MAX_BYTES."""
    last = connection.execute("SELECT id, total FROM journal ORDER BY id DESC LIMIT 1").fetchone()
    if last is None:
        return
    # Both columns grow with id, so each look stops at the first row to keep and costs what is deleted.
    young = connection.execute("SELECT id FROM journal WHERE at >= ? ORDER BY id LIMIT 1", (now - MAX_AGE,)).fetchone()
    small = connection.execute("SELECT id FROM journal WHERE total > ? ORDER BY id LIMIT 1", (last[1] - MAX_BYTES,)).fetchone()
    keep_from = max(row[0] if row else last[0] + 1 for row in (young, small))
    connection.execute("DELETE FROM journal WHERE id < ?", (keep_from,))


def known(connection: sqlite3.Connection, after: int, names: Sequence[str], limit: int) -> tuple[int, set[str]]:
    """Which of `names` are a sandbox, a container or a key in the `limit` rows after id `after`; pages as `page`'s."""
    end = _end_of_page(connection, after, limit)
    if end is None:
        return 0, set()
    found: set[str] = set()
    marks = ", ".join("?" * len(names))
    for column in ("sandbox", "container", "key"):
        query = f"SELECT DISTINCT {column} FROM journal WHERE id > ? AND id <= ? AND {column} IN ({marks})"
        found.update(row[0] for row in connection.execute(query, (after, end, *names)))
    return end, found


def page(connection: sqlite3.Connection, after: int, owner: tuple[str, str, str], limit: int) -> tuple[int, list[Entry]]:
    """Entries of `owner` (sandbox, container, key; empty ones match nothing) among the `limit` rows after id `after`.

    Returns the id to go on from, or 0 at the end. There is no index, which would cost every write; pages keep the writer free.
    """
    end = _end_of_page(connection, after, limit)
    if end is None:
        return 0, []
    rows = connection.execute(
        "SELECT at, kind, key, sandbox, container, transition, detail FROM journal WHERE id > ? AND id <= ? "
        "AND ((sandbox = ? AND sandbox <> '') OR (container = ? AND container <> '') OR (key = ? AND key <> '')) ORDER BY id",
        (after, end, *owner),
    ).fetchall()
    return end, [Entry(*row) for row in rows]


def _end_of_page(connection: sqlite3.Connection, after: int, limit: int) -> int | None:
    row = connection.execute("SELECT max(id) FROM (SELECT id FROM journal WHERE id > ? ORDER BY id LIMIT ?)", (after, limit)).fetchone()
    end: int | None = row[0]
    return end
