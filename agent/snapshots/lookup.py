"""Looking into a stack of layers without mounting it: what overlayfs would show at a path. Blocks; callers are in a thread.

The snapshotter uses it for /etc/passwd and /etc/group of an image, for a directory of it that becomes a volume, and for the
owner and mode of a directory that a layer only implies. Layers are a stranger's: no symlink is followed by the kernel, and none
leads out of the stack.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from agent.errdefs import ResourceExhausted
from agent.snapshots.tree import MAX_LINKS, is_whiteout, show

OPAQUE_XATTR = "trusted.overlay.opaque"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Found:
    """A name in the topmost layer that has it. Owns the descriptor of the directory; a context manager.

    `hides`: a directory on the way to it is opaque, so nothing of this name in a lower layer is ever seen.
    """

    def __init__(self, parent: int, name: bytes, mode: int, hides: bool) -> None:
        self.parent = parent
        self.name = name
        self.mode = mode
        self.hides = hides

    def open(self, flags: int) -> int:
        return os.open(self.name, flags, dir_fd=self.parent)

    def __enter__(self) -> Found:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.parent)


def open_directory(layers: Sequence[Path], path: bytes) -> int | None:
    """A descriptor of the topmost directory at `path` in `layers` (topmost first); None if there is none, or not by this name."""
    parts = [part for part in path.split(b"/") if part]
    if not parts:
        return os.open(layers[0], _OPEN_DIRECTORY) if layers else None
    found = _lookup(layers, parts)
    if found is None:
        return None
    with found:
        return found.open(_OPEN_DIRECTORY) if stat.S_ISDIR(found.mode) else None


def read_file(layers: Sequence[Path], path: bytes, limit: int) -> bytes | None:
    """The content of the regular file at `path` in `layers` (topmost first); None if there is none.

    Raises:
        ResourceExhausted: it is longer than `limit` bytes.
    """
    found = _resolve(layers, path)
    if not isinstance(found, Found):
        return None
    with found:
        if not stat.S_ISREG(found.mode):
            return None
        with open(found.open(_OPEN_FILE), "rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise ResourceExhausted(f"{show(path)} of the image is longer than {limit} bytes")
    return data


def merged_directories(layers: Sequence[Path], path: bytes) -> tuple[bytes, list[int]] | None:
    """The directory at `path` in `layers` (topmost first), symlinks followed: its path without any, relative, and the numbers of the
    layers whose directories of this name overlayfs merges to it, topmost first. None if there is no directory.
    """
    parts = _resolve(layers, path)
    if parts is None:
        return None
    if isinstance(parts, Found):
        with parts:
            return None
    if not parts:
        return b"", list(range(len(layers)))
    merged = []
    for number, layer in enumerate(layers):
        found, final = _in_layer(layer, parts)
        if found is not None:
            with found:
                if not stat.S_ISDIR(found.mode):
                    break
                directory = found.open(_OPEN_DIRECTORY)
                try:
                    final = found.hides or is_opaque(directory)
                finally:
                    os.close(directory)
            merged.append(number)
        if final:
            break
    return b"/".join(parts), merged


def is_opaque(directory: int) -> bool:
    """Whether an open directory hides those of its name in lower layers. Reading the mark takes CAP_SYS_ADMIN."""
    try:
        return os.getxattr(directory, OPAQUE_XATTR) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _resolve(layers: Sequence[Path], path: bytes) -> Found | list[bytes] | None:
    """What is at `path`, symlinks followed: the names that lead to a directory, `Found` for anything else, None for nothing."""
    real: list[bytes] = []
    todo = path.split(b"/")[::-1]
    links = 0
    with ExitStack() as previous:
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del real[-1:]
                continue
            previous.close()
            found = _lookup(layers, [*real, name])
            if found is None:
                return None
            previous.enter_context(found)
            if stat.S_ISLNK(found.mode):
                links += 1
                if links > MAX_LINKS:
                    return None
                target = os.readlink(name, dir_fd=found.parent)
                if target.startswith(b"/"):
                    real.clear()
                todo.extend(target.split(b"/")[::-1])
            elif stat.S_ISDIR(found.mode):
                real.append(name)
            elif todo:
                return None
            else:
                previous.pop_all()
                return found
    return real


def _lookup(layers: Sequence[Path], parts: Sequence[bytes]) -> Found | None:
    """The topmost `parts` that nothing above hides."""
    for layer in layers:
        found, final = _in_layer(layer, parts)
        if final:
            return found
    return None


def _in_layer(layer: Path, parts: Sequence[bytes]) -> tuple[Found | None, bool]:
    """`parts` in one layer, and whether that is the last word: hidden or found, lower layers are not asked."""
    parent = os.open(layer, _OPEN_DIRECTORY)
    try:
        opaque = False
        for name in parts[:-1]:
            try:
                child = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
            except FileNotFoundError:
                return None, opaque
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    return None, True  # a whiteout, a file or a symlink: nothing of this name is merged any deeper
                raise
            os.close(parent)
            parent = child
            opaque = opaque or is_opaque(parent)
        try:
            status = os.lstat(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            return None, opaque
        if is_whiteout(status):
            return None, True
        return Found(os.dup(parent), parts[-1], status.st_mode, opaque), True
    finally:
        os.close(parent)
