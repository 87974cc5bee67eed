"""The last steps before an unpacked layer becomes visible: what the confined worker couldn't do. Blocks; runs in a thread.

The worker's answer is not trusted further than this: its paths are walked from the layer's root, one component at a time, and
nothing but an overlay mark, or the owner, mode, time and attributes of a lower directory, is ever set on what they name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agent.snapshots.lookup import OPAQUE_XATTR, open_directory

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Unpacked:
    """A layer in `unpack/<key>`, complete but for what its commit adds."""

    key: str
    diff_id: str
    size: int
    inodes: int
    opaque: tuple[bytes, ...]
    implied: tuple[bytes, ...]

    @classmethod
    def from_answer(cls, key: str, diff_id: str, answer: Mapping[str, Any]) -> Unpacked:
        """Raises KeyError, TypeError or ValueError for what no honest worker says."""
        opaque, implied = (tuple(map(_plain_path, answer[name])) for name in ("opaque", "implied"))
        return cls(key, diff_id, int(answer["size"]), int(answer["inodes"]), opaque, implied)


def _plain_path(text: str) -> bytes:
    """A path that means what it says. Raises ValueError for one with dots or doubled slashes in it."""
    path = text.encode("utf-8", "surrogateescape")
    if path and not {b"", b".", b".."}.isdisjoint(path.split(b"/")):
        raise ValueError(f"the path {text!r}")
    return path


def complete(directory: Path, unpacked: Unpacked, parents: Sequence[Path]) -> None:
    """Turn `directory` into a layer's: marks and implied directories.

    `parents` are the layers below, topmost first. Raises OSError.
    """
    root = os.open(directory / "fs", _OPEN_DIRECTORY)
    try:
        for path in unpacked.opaque:
            _with_directory(root, path, _mark_opaque)
        hidden = set(unpacked.opaque)
        for path in unpacked.implied:
            # Below an opaque directory it has nothing to do with one of the same name in a lower layer.
            if hidden.isdisjoint(_above(path)) and (source := open_directory(parents, path)) is not None:
                try:
                    _with_directory(root, path, partial(_copy_attributes, source))
                finally:
                    os.close(source)
    finally:
        os.close(root)


def _with_directory(root: int, path: bytes, act: Callable[[int], None]) -> None:
    fd = os.dup(root)
    try:
        for name in path.split(b"/") if path else ():
            child = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = child
        act(fd)
    finally:
        os.close(fd)


def _mark_opaque(directory: int) -> None:
    os.setxattr(directory, OPAQUE_XATTR, b"y")


def _copy_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, status.st_mode & 0o7777)
    try:
        for name in os.listxattr(source):
            if not name.startswith("trusted.overlay."):
                os.setxattr(target, name, os.getxattr(source, name))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _above(path: bytes) -> list[bytes]:
    """The directories that `path` lies in, the root included if it lies in it."""
    parts = path.split(b"/") if path else []
    return [b"/".join(parts[:length]) for length in range(len(parts))]
