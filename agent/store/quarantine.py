"""Rows that could not be understood: kept as they were found, counted, told, and never fatal (field-faults 24)."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from agent import log, metrics

_log = log.get("store")


@dataclass(frozen=True)
class Bad:
    """A row set aside: from which table, its name there, why, and the row itself."""

    origin: str
    name: str
    reason: str
    row: bytes

    def to_json(self) -> dict[str, Any]:
        return {"origin": self.origin, "name": self.name, "reason": self.reason, "row": self.row.decode(errors="backslashreplace")}


def report(bad: Bad) -> None:
    """Tell of a row that was found just now."""
    metrics.ledger_quarantined.inc()
    _log.error("a stored row can't be understood: set aside, going on without it", origin=bad.origin, name=bad.name, reason=bad.reason)


def add(connection: sqlite3.Connection, bad: Bad, at: float) -> None:
    """Keep the row; the caller deletes it where it was, in the same transaction. `at` is Unix seconds."""
    connection.execute(
        "INSERT INTO quarantine (at, origin, name, reason, row) VALUES (?, ?, ?, ?, ?)", (at, bad.origin, bad.name, bad.reason, bad.row)
    )


def load(connection: sqlite3.Connection) -> list[Bad]:
    """What has been set aside so far, oldest first."""
    return [Bad(*row) for row in connection.execute("SELECT origin, name, reason, row FROM quarantine ORDER BY id")]
