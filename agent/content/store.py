"""The content store: blobs by digest, verified while they stream in, and visible only when complete and on disk.

    <root>/ingest/<key>           being written, or staged for one reader; swept at start
    <root>/blobs/sha256/<hex>     complete; what the file holds is what its name says

Called by `agent.images`, which decides what is kept: the store counts no references. What is needed once, a compressed layer, is
staged instead of stored: as well verified, but never synced to disk, since nothing counts on it after a crash.
Files are opened, written and synced in threads; the event loop only passes chunks on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from agent import failpoints
from agent.aio import KeyedLock, Supervisor, in_thread
from agent.content.digest import ALGORITHM, digest_of, hasher, validate_digest
from agent.errdefs import DataLoss, InvalidArgument, NotFound, of_disk
from agent.identifiers import validate


class ContentStore:
    """Blobs under `root`. `open()` first; one store per directory."""

    def __init__(self, root: Path) -> None:
        self._ingests = root / "ingest"
        self._blobs = root / "blobs" / ALGORITHM
        self._sizes: dict[str, int] = {}
        self._locks = KeyedLock()
        self._supervisor = Supervisor("content")

    async def open(self) -> list[str]:
        """Make the directories, learn what is there, and remove what a previous daemon left half-written.

        Returns the keys of the removed ingests. Children that could still write are dead by now (invariant 13).
        """
        removed, self._sizes = await in_thread(self._open)
        return removed

    def _open(self) -> tuple[list[str], dict[str, int]]:
        for directory in (self._ingests, self._blobs):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        left = sorted(entry.name for entry in self._ingests.iterdir())
        for name in left:
            (self._ingests / name).unlink()
        sizes = {}
        for entry in os.scandir(self._blobs):
            with suppress(InvalidArgument):  # a file of somebody else's
                sizes[validate_digest(f"{ALGORITHM}:{entry.name}")] = entry.stat(follow_symlinks=False).st_size
        return left, sizes

    async def ingest(self, source: AsyncIterator[bytes], key: str, digest: str = "", size: int | None = None) -> str:
        """Store what `source` yields and return its digest. A blob that is there already is not read again.

        `key` names the partial file, chosen by the caller before the act so that its intent can name it. Without `digest`
        the blob gets the one it turns out to have. Whatever goes wrong, nothing of the blob is left.

        Raises:
            DataLoss: the bytes are not those of `digest`, or not `size` many; reading stops as soon as they are too many.
            ResourceExhausted: the disk is full. Unavailable: it fails.
            InvalidArgument: `digest`, which must be a sha256, or `key` is malformed.
        """
        validate(key, "ingest key")
        if not digest:
            return await self._ingest(source, key, digest, size)
        validate_digest(digest, (ALGORITHM,))
        async with self._locks.hold(digest):  # two images that share a blob: the second waits and finds it
            if digest in self._sizes:
                return digest
            return await self._ingest(source, key, digest, size)

    async def _ingest(self, source: AsyncIterator[bytes], key: str, digest: str, size: int | None) -> str:
        partial = _Partial(self._ingests / key)
        try:
            with self._bad_disk_told(digest or key):
                await self._write(source, partial, digest, size)
                await failpoints.hit("content.ingest.rename")
                return await in_thread(partial.publish, self._blobs)
        finally:
            await self._supervisor.detached(self._end(partial), name=f"end of ingest {key}")

    @asynccontextmanager
    async def staged(self, source: AsyncIterator[bytes], key: str, digest: str = "", size: int | None = None) -> AsyncIterator[Path]:
        """A file with what `source` yields, there for as long as the context. Verified as by `ingest`, and with its errors and keys."""
        validate(key, "ingest key")
        partial = _Partial(self._ingests / key, digest and validate_digest(digest))
        try:
            with self._bad_disk_told(digest or key):
                await self._write(source, partial, digest, size)
            yield self._ingests / key
        finally:
            await self._supervisor.detached(self._end(partial), name=f"end of staged {key}")

    async def _end(self, partial: _Partial) -> None:
        if (found := await in_thread(partial.close)) is not None:
            self._sizes[found] = partial.written

    async def _write(self, source: AsyncIterator[bytes], partial: _Partial, digest: str, size: int | None) -> None:
        await failpoints.hit("content.ingest.create")
        await in_thread(partial.create)
        async for chunk in source:
            await in_thread(partial.write, chunk)
            if size is not None and partial.written > size:
                raise DataLoss(f"blob {digest or partial.name} is longer than the {size} bytes it should have; it was not stored")
        if size is not None and partial.written != size:
            raise DataLoss(f"blob {digest or partial.name} ended after {partial.written} of {size} bytes; it was not stored")
        if digest and partial.digest() != digest:
            raise DataLoss(f"blob {digest} has the digest {partial.digest()}; it was not stored")

    @contextmanager
    def _bad_disk_told(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if (told := of_disk(error, f"blob {what} in {self._ingests}")) is not None:
                raise told from error
            raise

    async def abort(self, key: str) -> None:
        """Remove what an ingest left; nothing there: no-op. The release of a ledger entry INGEST."""
        with suppress(FileNotFoundError):
            await in_thread((self._ingests / validate(key, "ingest key")).unlink)

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be. Raises InvalidArgument for what is not a digest."""
        return self._blobs / validate_digest(digest).removeprefix(f"{ALGORITHM}:")

    def exists(self, digest: str) -> bool:
        return digest in self._sizes

    def size(self, digest: str) -> int:
        """Bytes of a stored blob; NotFound."""
        try:
            return self._sizes[digest]
        except KeyError:
            raise NotFound(f"blob {digest} is not in the content store") from None

    def list(self) -> dict[str, int]:
        """Digest and bytes of every blob."""
        return dict(self._sizes)

    async def read(self, digest: str) -> bytes:
        """A whole small blob (manifest, config), verified again.

        Raises:
            NotFound: it isn't stored.
            DataLoss: the disk has other bytes than were stored.
        """
        self.size(digest)
        try:
            data = await in_thread(self.path(digest).read_bytes)
        except FileNotFoundError:
            self._sizes.pop(digest, None)
            raise NotFound(f"blob {digest} has vanished from the content store") from None
        if digest_of(data) != digest:
            raise DataLoss(f"blob {digest} is damaged on disk: its bytes have the digest {digest_of(data)}")
        return data

    async def delete(self, digest: str) -> None:
        """Remove a blob; not there: no-op. Needs no disk space. When this raises, it is there still, to be deleted later."""
        path = self.path(digest)
        size = self._sizes.pop(digest, None)  # before the first await: nobody finds it any more
        try:
            await failpoints.hit("content.delete.unlink")
            await self._supervisor.detached(self._unlink(digest, path), name=f"delete {digest}")
        except Exception:
            if size is not None and await in_thread(path.exists):
                self._sizes.setdefault(digest, size)
            raise

    async def _unlink(self, digest: str, path: Path) -> None:
        async with self._locks.hold(digest):  # an ingest of the same digest comes before or after, not between
            if digest not in self._sizes:
                await in_thread(path.unlink, missing_ok=True)


class _Partial:
    """A blob being written. Its methods run in threads, which a cancelled caller doesn't wait for: the lock lets `close` do so,
    and after it nothing more is created."""

    def __init__(self, path: Path, digest: str = "") -> None:
        """`digest` is what it should get; by its algorithm it is hashed."""
        self._path = path
        self._lock = threading.Lock()
        self._hasher = hasher(digest)
        self._file = -1
        self._closed = False
        self._published: str | None = None
        self.name = path.name
        self.written = 0

    def digest(self) -> str:
        return f"{self._hasher.name}:{self._hasher.hexdigest()}"

    def create(self) -> None:
        with self._lock:
            if not self._closed:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, chunk: bytes) -> None:
        with self._lock:
            if self._closed:
                return
            self._hasher.update(chunk)
            self.written += len(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._file, view) :]

    def publish(self, blobs: Path) -> str:
        """Make the blob durable, then visible under its digest."""
        with self._lock:
            digest = self.digest()
            if not self._closed:
                os.fsync(self._file)
                self._path.rename(blobs / digest.removeprefix(f"{ALGORITHM}:"))
                self._published = digest
                _sync_directory(blobs)
            return digest

    def close(self) -> str | None:
        """Remove what was not published; the digest of what was, whether or not anybody saw `publish` return."""
        with self._lock:
            self._closed = True
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                if self._published is None:
                    self._path.unlink(missing_ok=True)
            return self._published


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
