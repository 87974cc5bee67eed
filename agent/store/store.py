"""The store of one daemon: two database files, the ledger and the records in them, and the lock that makes the daemon the only one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from agent import log, metrics, timeouts
from agent.aio import in_thread, within
from agent.errdefs import DeadlineExceeded, FailedPrecondition, Unavailable
from agent.store import quarantine, rows
from agent.store.database import Database, MakeWriter
from agent.store.ledger import Ledger
from agent.store.quarantine import Bad
from agent.store.records import Records
from agent.store.resource import Resource
from agent.store.writer import WriterThread

_log = log.get("store")

BOOT_FILE = "boot.db"
DISK_FILE = "disk.db"
_LOCK_PATIENCE = 0.5


class Store:
    """Made by `open` or `open_read_only` only; ended by `close`.

    Attributes:
        ledger: the external resources.
    """

    def __init__(self, boot: Database, disk: Database, ledger: Ledger, clock: Callable[[], float], locks: list[int]) -> None:
        self.ledger = ledger
        self._boot = boot
        self._disk = disk
        self._clock = clock
        self._locks = locks

    @classmethod
    async def open(
        cls,
        state_dir: Path,
        root_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        boot_id: str = "",
        writer: MakeWriter = WriterThread,
    ) -> Store:
        """Lock both directories (made if missing), open and load both files. Never fails for what is in them.

        A corrupt file is set aside and begun anew with what can be read of it; a row that can't be understood goes into the
        quarantine; a file that can't be written can still be loaded, and what is owned can be released. `boot_id` defaults to
        the kernel's; rows of another boot in the boot file are dropped.

        Raises:
            FailedPrecondition: another daemon uses a directory, or a newer version wrote a file.
            Unavailable: a file can't even be read.
        """
        locks = await in_thread(_lock_all, (state_dir, root_dir))
        boot_id = boot_id or await in_thread(Path("/proc/sys/kernel/random/boot_id").read_text)
        boot = Database(
            state_dir / BOOT_FILE, synchronous="OFF", clock=clock, boot_id=boot_id.strip(), scratch=state_dir, writer=writer
        )  # fmt: skip
        disk = Database(root_dir / DISK_FILE, synchronous="FULL", clock=clock, scratch=state_dir, writer=writer)
        return await cls._load(boot, disk, clock, locks)

    @classmethod
    async def open_read_only(cls, state_dir: Path, root_dir: Path, *, clock: Callable[[], float] = time.time) -> Store:
        """The store of a daemon that is down, for `orlop audit`. Reads work and change nothing; writes raise Unavailable.

        Raises:
            FailedPrecondition: the daemon runs; ask it (`orlop.admin.v1`).
            Unavailable: a file can't be read.
        """
        locks = await in_thread(_lock_all, tuple(directory for directory in (state_dir, root_dir) if directory.is_dir()))
        boot = Database(state_dir / BOOT_FILE, synchronous="OFF", clock=clock, writable=False)
        disk = Database(root_dir / DISK_FILE, synchronous="FULL", clock=clock, writable=False)
        return await cls._load(boot, disk, clock, locks)

    @classmethod
    async def _load(cls, boot: Database, disk: Database, clock: Callable[[], float], locks: list[int]) -> Store:
        databases = (boot, disk)
        try:
            rows_aside = [len(await database.read(quarantine.load)) for database in databases]
            files_aside = [len(await in_thread(database.corrupt_files)) for database in databases]
            metrics.ledger_quarantined.set(sum(rows_aside + files_aside))
            resources: list[Resource] = []
            for database in databases:
                good, bad = await database.read(rows.load)
                resources += good
                for _, row in bad:
                    quarantine.report(row)
                if database.writable:
                    # Also without a bad row: `problem` then says from the start that the file can't be written.
                    await database.insist(rows.set_aside(bad, clock()), key="quarantine")
        except BaseException:
            await asyncio.gather(*(database.close() for database in databases))
            _unlock(locks)
            raise
        return cls(boot, disk, Ledger(boot, disk, resources, clock), clock, locks)

    def boot_records(self, bucket: str) -> Records:
        """Records that a reboot ends."""
        return Records(self._boot, bucket, self._clock)

    def disk_records(self, bucket: str) -> Records:
        """Records that outlive a reboot; each write is an fsync."""
        return Records(self._disk, bucket, self._clock)

    async def quarantined(self) -> list[Bad]:
        """Rows of both files that could not be understood.

        Raises:
            Unavailable: a file can't be read.
        """
        return [bad for database in (self._boot, self._disk) for bad in await database.read(quarantine.load)]

    async def doubt(self, reason: str) -> None:
        """Say that the boot file has lost what it had, though it can be read. It counts as corrupt until the file made by this is gone."""
        marker = await in_thread(self._boot.doubt)
        metrics.ledger_quarantined.inc()
        _log.error("the store has lost what it had", reason=reason, aside=str(marker))

    async def corrupt_files(self) -> list[Path]:
        """Copies of files that were corrupt, until an operator has looked at them and removed them: what they had may be lost."""
        return [path for database in (self._boot, self._disk) for path in await in_thread(database.corrupt_files)]

    @property
    def problem(self) -> str:
        """Why nothing can be acquired at the moment: a sentence for Status, or empty."""
        return self._boot.problem or self._disk.problem

    async def flush(self) -> int:
        """Try the pending writes of both files again. Returns how many are still pending."""
        return await self.ledger.flush()

    async def close(self) -> None:
        """Write what is pending if that works now, close the files, release the lock. Idempotent; a disk that hangs doesn't stop it."""
        try:
            await within(timeouts.STORE_CLOSE, self._close_files(), "closing the store")
        except DeadlineExceeded as error:
            _log.error("the store is left to the next start as after a crash", error=str(error))
        _unlock(self._locks)

    async def _close_files(self) -> None:
        if left := await self.flush():
            _log.error("the store is closed with writes that were not possible: their resources are released again", writes=left)
        await asyncio.gather(self._boot.close(), self._disk.close())


def _lock(directory: int) -> None:
    """A child of a daemon that was just killed holds the lock from its fork to its exec; nobody else lets go of it that soon."""
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            return fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)


def _lock_all(directories: tuple[Path, ...]) -> list[int]:
    locks: list[int] = []
    try:
        for directory in directories:
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            # The directory itself is locked: that needs no space on a full disk. Children don't inherit it (O_CLOEXEC).
            locks.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            _lock(locks[-1])
    except OSError as error:
        _unlock(locks)
        if isinstance(error, BlockingIOError):
            raise FailedPrecondition(f"another orlop daemon uses {directory}; stop it, or use directories of your own") from error
        raise Unavailable(f"the store in {directory} can't be opened: {error}") from error
    return locks


def _unlock(locks: list[int]) -> None:
    for lock in locks:
        os.close(lock)
    locks.clear()
