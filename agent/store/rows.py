"""Resources as rows of the table `resources`: functions for the writer's thread, made by `agent.store.ledger`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from agent.store import journal, quarantine
from agent.store.journal import Entry
from agent.store.kinds import Kind
from agent.store.resource import Resource, State

Change: TypeAlias = Callable[[sqlite3.Connection], None]

_COLUMNS = ("kind", "key", "sandbox", "container", "state", "data", "attempts", "error", "created", "failed_since", "next_attempt")
_VALUES = f"INTO resources ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
# A drop that could not be written leaves the old row behind; it is replaced, and the new one is the newest again.
_INSERT = f"INSERT OR REPLACE {_VALUES}"
_UPDATE = f"INSERT {_VALUES} ON CONFLICT (kind, key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[2:])}"


def insert(resources: Sequence[Resource], at: float) -> Change:
    """Write new resources, and their intention into the journal.

    Raises:
        TypeError, ValueError: the data of one isn't JSON.
    """
    return _put(_INSERT, resources, "intended", at)


def update(resource: Resource, transition: str, at: float) -> Change:
    """Write a resource's present state, and `transition` into the journal. Raises as `insert`."""
    return _put(_UPDATE, [resource], transition, at)


def delete(resource: Resource, at: float) -> Change:
    """Remove the row, if it is there."""
    entry = _entry(resource, "dropped", at)

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM resources WHERE kind = ? AND key = ?", resource.id)
        journal.append(connection, entry)

    return change


def load(connection: sqlite3.Connection) -> tuple[list[Resource], list[tuple[int, quarantine.Bad]]]:
    """All resources in the order of their making; and apart, with their row ids, rows that this version can't understand."""
    good: list[Resource] = []
    bad: list[tuple[int, quarantine.Bad]] = []
    # As bytes, so that a text that is damaged spoils its own row and not the reading of all.
    connection.text_factory = bytes
    try:
        for row in connection.execute(f"SELECT id, {', '.join(_COLUMNS)} FROM resources ORDER BY id"):
            try:
                good.append(_decode(row[1:]))
            except (ValueError, TypeError) as error:
                name = b" ".join(value for value in row[1:3] if isinstance(value, bytes)).decode(errors="replace")
                bad.append((row[0], quarantine.Bad("resources", name, str(error), repr(row).encode())))
    finally:
        connection.text_factory = str
    return good, bad


def set_aside(bad: Sequence[tuple[int, quarantine.Bad]], at: float) -> Change:
    """Move rows that `load` could not understand into the quarantine."""

    def change(connection: sqlite3.Connection) -> None:
        for row_id, row in bad:
            quarantine.add(connection, row, at)
            connection.execute("DELETE FROM resources WHERE id = ?", (row_id,))

    return change


def _put(statement: str, resources: Sequence[Resource], transition: str, at: float) -> Change:
    # Encoded here, on the caller's side, so that data that isn't JSON fails before anything has changed.
    encoded = [_encode(resource) for resource in resources]
    entries = [_entry(resource, transition, at) for resource in resources]

    def change(connection: sqlite3.Connection) -> None:
        for row in encoded:
            connection.execute(statement, row)
        for entry in entries:
            journal.append(connection, entry)

    return change


def _entry(resource: Resource, transition: str, at: float) -> Entry:
    detail = resource.error if transition == "failed" else ""
    return Entry(at, resource.kind.value, resource.key, resource.sandbox, resource.container, transition, detail)


def _encode(resource: Resource) -> tuple[Any, ...]:
    return (
        resource.kind.value,
        resource.key,
        resource.sandbox,
        resource.container,
        resource.state.value,
        json.dumps(dict(resource.data)),
        resource.attempts,
        resource.error,
        resource.created,
        resource.failed_since,
        resource.next_attempt,
    )


def _decode(row: tuple[Any, ...]) -> Resource:
    values: list[Any] = [value.decode() if isinstance(value, bytes) else value for value in row]
    values[0], values[4], values[5] = Kind(values[0]), State(values[4]), json.loads(values[5])
    if not isinstance(values[5], dict):
        raise ValueError(f"data is {type(values[5]).__name__}, not an object")
    return Resource(*values)
