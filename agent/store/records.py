"""Whole objects of other packages (sandboxes, containers, images), kept by key; what the bytes mean is their owner's business."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable

from agent import failpoints
from agent.store import quarantine
from agent.store.database import Database


class Records:
    """One bucket of a database. The owner keeps its objects in memory and reads them once, with `load`, at its start."""

    def __init__(self, database: Database, bucket: str, clock: Callable[[], float]) -> None:
        self._database = database
        self._bucket = bucket
        self._clock = clock

    async def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, replacing what was there.

        Raises:
            Unavailable: the database can't be written; what was there before is there still.
        """
        await failpoints.hit("store.put.commit")
        row = (self._bucket, key, zlib.crc32(data), data)
        await self._database.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO records (bucket, key, crc, data) VALUES (?, ?, ?, ?)", row),
            keys=((self._bucket, key),),
        )

    async def delete(self, key: str) -> None:
        """Remove the record, if there is one. Never fails: where it can't be written, it stays pending (`Store.flush`)."""
        await failpoints.hit("store.delete.commit")
        row = (self._bucket, key)
        await self._database.insist(lambda connection: connection.execute("DELETE FROM records WHERE bucket = ? AND key = ?", row), key=row)

    async def load(self) -> dict[str, bytes]:
        """All records, by key in the order of their last writing. A damaged one is left out, set aside and reported.

        Raises:
            Unavailable: the database can't be read.
        """
        good, bad = await self._database.read(self._read)
        for row in bad:
            quarantine.report(row)
        if bad and self._database.writable:
            await self._database.insist(self._set_aside(bad), key=("quarantine", self._bucket))
        return good

    def _read(self, connection: sqlite3.Connection) -> tuple[dict[str, bytes], list[quarantine.Bad]]:
        good: dict[str, bytes] = {}
        bad: list[quarantine.Bad] = []
        for key, crc, data in connection.execute("SELECT key, crc, data FROM records WHERE bucket = ? ORDER BY rowid", (self._bucket,)):
            if zlib.crc32(data) == crc:
                good[key] = data
            else:
                bad.append(quarantine.Bad("records", f"{self._bucket} {key}", "its checksum is wrong", data))
        return good, bad

    def _set_aside(self, bad: list[quarantine.Bad]) -> Callable[[sqlite3.Connection], None]:
        at = self._clock()

        def change(connection: sqlite3.Connection) -> None:
            for row in bad:
                quarantine.add(connection, row, at)
                connection.execute(
                    "DELETE FROM records WHERE bucket = ? AND key = ?", (self._bucket, row.name.removeprefix(f"{self._bucket} "))
                )

        return change
