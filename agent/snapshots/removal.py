"""Removing a tree that strangers filled: a layer, or what a container wrote. Blocks; callers are in a thread.

`shutil.rmtree` gives up on two things that a container can do to be remembered: directories nested deeper than Python's
stack, and files marked immutable. It would also go through a mount that is still there.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

from agent.errdefs import Busy

_MAX_DEPTH = 64
"""Nested open directories; deeper ones are moved to the top first."""
_BATCH = 1000
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_IMMUTABLE_FL = 0x10
_FS_APPEND_FL = 0x20


def remove_tree(path: Path) -> None:
    """Remove `path` and all below it; nothing there: no-op. Needs no disk space, and may be repeated after it was cut off.

    Raises:
        Busy: another file system is mounted below it. Nothing of that one was touched.
        OSError: the kernel refused.
    """
    try:
        top = os.open(path, _OPEN_DIRECTORY)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink()
        return
    try:
        _empty(top, top, os.fstat(top).st_dev, path, 0)
    finally:
        os.close(top)
    path.rmdir()


def _empty(directory: int, top: int, device: int, path: Path, depth: int) -> None:
    while True:
        with os.scandir(directory) as entries:
            batch = list(islice(entries, _BATCH))
        if not batch:
            return
        for entry in batch:
            if not entry.is_dir(follow_symlinks=False):
                _insist(partial(os.unlink, entry.name, dir_fd=directory), entry.name, directory)
            elif depth < _MAX_DEPTH:
                _remove_directory(entry.name, directory, top, device, path, depth)
            else:
                move = partial(os.rename, entry.name, f".{secrets.token_hex(8)}", src_dir_fd=directory, dst_dir_fd=top)
                _insist(move, entry.name, directory)


def _remove_directory(name: str, parent: int, top: int, device: int, path: Path, depth: int) -> None:
    directory = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(directory).st_dev != device:
            raise Busy(f"{path} holds a mount ({name}); it is not removed before that is unmounted")
        _empty(directory, top, device, path, depth + 1)
    finally:
        os.close(directory)
    _insist(partial(os.rmdir, name, dir_fd=parent), name, parent)


def _insist(remove: Callable[[], None], name: str, parent: int) -> None:
    try:
        remove()
    except PermissionError:  # root is refused for one reason: chattr +i or +a, of the file or of its directory
        _clear_flags(parent)
        if stat.S_IFMT(os.lstat(name, dir_fd=parent).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            try:
                _clear_flags(fd)
            finally:
                os.close(fd)
        remove()


def _clear_flags(fd: int) -> None:
    with suppress(OSError):  # file systems without flags; the caller's second try tells what is wrong
        flags: int = struct.unpack("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))[0]
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags & ~(_FS_IMMUTABLE_FL | _FS_APPEND_FL)))
