"""Schema of a store database. Both files have the same one; each holds the rows of its scope (`agent.store.kinds`).

    /run/orlop/boot.db          what a reboot ends
    /var/lib/orlop/disk.db      what outlives it

    meta                        facts about the file
        name        TEXT        "boot_id": the boot whose resources the rows describe (boot.db only)
        value       TEXT
    resources                   the ledger: one row for each external resource that exists or may exist
        id          INTEGER     grows, so that it tells the order of making
        kind, key   TEXT        unique together; a value of `kinds.Kind`
        sandbox, container TEXT owner; container is empty for what belongs to the sandbox itself
        state       TEXT        a value of `resource.State`
        data        TEXT        JSON object, for the releaser of the kind
        attempts    INTEGER     failed releases so far
        error       TEXT        the last failure
        created, failed_since, next_attempt REAL    Unix seconds
    records                     whole objects of other packages (pods, containers, images), opaque here
        bucket, key TEXT        unique together
        crc         INTEGER     zlib.crc32 of data
        data        BLOB
    journal                     each transition of a resource, bounded (`agent.store.journal`)
        id          INTEGER     grows
        at          REAL        Unix seconds
        kind, key, sandbox, container TEXT
        transition  TEXT        intended | held | releasing | failed | dropped
        detail      TEXT        of a failure: the error
        total       INTEGER     bytes of all rows ever written up to this one, so that the size is a subtraction
    quarantine                  rows that could not be understood, as they were found
        id          INTEGER
        at          REAL        Unix seconds
        origin      TEXT        "resources" or "records"
        name        TEXT        kind and key, or bucket and key
        reason      TEXT
        row         BLOB        the columns, as repr()

`PRAGMA user_version` is the number of migrations applied. A migration is never edited once released; a new one is appended,
and gets a test.
"""

from __future__ import annotations

import sqlite3

from agent.errdefs import FailedPrecondition

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE resources (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL, key TEXT NOT NULL,
        sandbox TEXT NOT NULL, container TEXT NOT NULL,
        state TEXT NOT NULL,
        data TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        error TEXT NOT NULL,
        created REAL NOT NULL, failed_since REAL, next_attempt REAL,
        UNIQUE (kind, key)
    ) STRICT;
    CREATE TABLE records (
        bucket TEXT NOT NULL, key TEXT NOT NULL,
        crc INTEGER NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (bucket, key)
    ) STRICT;
    CREATE TABLE journal (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        kind TEXT NOT NULL, key TEXT NOT NULL, sandbox TEXT NOT NULL, container TEXT NOT NULL,
        transition TEXT NOT NULL,
        detail TEXT NOT NULL,
        total INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE quarantine (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        origin TEXT NOT NULL,
        name TEXT NOT NULL,
        reason TEXT NOT NULL,
        row BLOB NOT NULL
    ) STRICT;
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file up to date, one migration and one transaction at a time.

    Raises:
        FailedPrecondition: a newer version of the agent wrote the file.
        sqlite3.Error: the file is corrupt, or can't be written.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise FailedPrecondition(
            f"the store has schema {version}, this orlop knows schemas up to {len(MIGRATIONS)}: a newer one wrote it; install that again"
        )
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")


def begin_boot(connection: sqlite3.Connection, boot_id: str) -> None:
    """Forget what another boot left in the file; the journal stays, as it tells what has been."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'boot_id'").fetchone()
    if row is not None and row[0] == boot_id:
        return
    connection.execute("BEGIN IMMEDIATE")
    if row is not None:
        for table in ("resources", "records", "quarantine"):
            connection.execute(f"DELETE FROM {table}")
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('boot_id', ?)", (boot_id,))
    connection.execute("COMMIT")
