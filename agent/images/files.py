"""The files of an image archive, by name: a directory, or a tar that is read in place and never extracted.

`agent.images.archive` knows what the names mean. Archives are untrusted: names are keys of a table, not paths to follow; links
inside a tar stay inside; in a directory only regular files are opened, the last component without following a symlink.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.aio import in_thread
from agent.errdefs import DataLoss, InvalidArgument, NotFound
from agent.snapshots.tar import Entry, EntryType, TarReader

CHUNK = 1 << 20
MAX_ENTRIES = 100_000
_MAX_LINKS = 16
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "unzstd", b"\xfd7zXZ": "unxz", b"BZh": "bunzip2"}


class ArchiveFiles(Protocol):
    """Read-only access by name. Names are relative, with slashes."""

    async def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is no such file."""

    async def read(self, name: str, limit: int) -> bytes:
        """A whole file. Raises NotFound; InvalidArgument: it is longer than `limit` bytes."""

    def stream(self, name: str) -> AsyncIterator[bytes]:
        """The bytes of a file in chunks. Raises NotFound, DataLoss (cut off)."""


@asynccontextmanager
async def open_files(path: Path) -> AsyncIterator[ArchiveFiles]:
    """The files of the archive at `path`.

    Raises:
        NotFound: there is nothing at `path`.
        InvalidArgument: it is neither a directory nor an uncompressed tar.
        DataLoss: the tar is damaged.
    """
    try:
        mode = (await in_thread(path.stat)).st_mode
    except OSError as error:
        raise NotFound(f"image archive {path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        yield _Directory(path)
        return
    if not stat.S_ISREG(mode):
        raise InvalidArgument(f"image archive {path} is neither a file nor a directory")
    archive = await in_thread(_Tar, path)
    try:
        yield archive
    finally:
        archive.close()


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    async def size(self, name: str) -> int | None:
        try:
            status = await in_thread(os.lstat, self._root / name)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    async def read(self, name: str, limit: int) -> bytes:
        return await in_thread(self._read, name, limit)

    def _read(self, name: str, limit: int) -> bytes:
        with open(self._open(name), "rb") as file:
            return _within_limit(file.read(limit + 1), limit, name)

    async def stream(self, name: str) -> AsyncIterator[bytes]:
        descriptor = await in_thread(self._open, name)
        try:
            while chunk := await in_thread(os.read, descriptor, CHUNK):
                yield chunk
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> int:
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NotFound(f"{self._root} has no file {name}") from None
            raise InvalidArgument(f"{name} in {self._root} can't be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InvalidArgument(f"{name} in {self._root} is not a regular file")
        return descriptor


@dataclass(frozen=True)
class _Member:
    offset: int
    size: int


class _Tar:
    """An uncompressed tar, indexed when it is opened. Blocks there; afterwards files are read at their offsets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed by close()
        try:
            start = os.pread(self._file.fileno(), 6, 0)
            for magic, tool in _COMPRESSED.items():
                if start.startswith(magic):
                    raise InvalidArgument(f"image archive {path} is compressed; uncompress it first ({tool})")
            self._members = self._index()
        except BaseException:
            self._file.close()
            raise

    def _index(self) -> dict[str, _Member]:
        members: dict[str, _Member] = {}
        links: dict[str, str] = {}
        # Small reads: most of an archive is skipped.
        reader = TarReader(lambda count: self._file.read(min(count, 1 << 12)), self._skip)
        length = os.fstat(self._file.fileno()).st_size
        for number, entry in enumerate(reader):
            if number >= MAX_ENTRIES:
                raise InvalidArgument(f"image archive {self._path} has more than {MAX_ENTRIES} entries")
            name = _normal(entry.name)
            if entry.offset + entry.size > length:
                raise DataLoss(f"image archive {self._path} is cut off in the middle of {name}")
            if entry.type is EntryType.FILE:
                members[name] = _Member(entry.offset, entry.size)
                links.pop(name, None)
            elif (target := _target(entry, name)) is not None:
                links[name] = target
        # Older `docker save` stores a layer that several images share once, and symlinks to it.
        for name, target in links.items():
            for _ in range(_MAX_LINKS):
                if target in members:
                    members[name] = members[target]
                    break
                target = links.get(target, "")
        return members

    def _skip(self, count: int) -> None:
        self._file.seek(count, os.SEEK_CUR)

    def close(self) -> None:
        self._file.close()

    async def size(self, name: str) -> int | None:
        member = self._members.get(name)
        return None if member is None else member.size

    async def read(self, name: str, limit: int) -> bytes:
        member = self._member(name)
        data = await in_thread(os.pread, self._file.fileno(), min(member.size, limit + 1), member.offset)
        return _within_limit(data, limit, name)

    async def stream(self, name: str) -> AsyncIterator[bytes]:
        member = self._member(name)
        offset, end = member.offset, member.offset + member.size
        while offset < end:
            chunk = await in_thread(os.pread, self._file.fileno(), min(CHUNK, end - offset), offset)
            if not chunk:
                raise DataLoss(f"image archive {self._path} was cut off while it was read")
            offset += len(chunk)
            yield chunk

    def _member(self, name: str) -> _Member:
        try:
            return self._members[name]
        except KeyError:
            raise NotFound(f"{self._path} has no file {name}") from None


def _normal(name: bytes) -> str:
    return posixpath.normpath(name.decode(errors="surrogateescape").lstrip("/"))


def _target(entry: Entry, name: str) -> str | None:
    match entry.type:
        case EntryType.SYMLINK:
            return posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.target.decode(errors="surrogateescape")))
        case EntryType.HARD_LINK:
            return _normal(entry.target)
        case _:
            return None


def _within_limit(data: bytes, limit: int, name: str) -> bytes:
    if len(data) > limit:
        raise InvalidArgument(f"{name} has more than the {limit} bytes that such a document may have")
    return data
