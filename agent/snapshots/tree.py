"""A directory tree that is filled from untrusted names: every step goes by directory descriptor, and none follows a symlink.

The kernel never resolves more than one component here. A symlink in the middle of a path is read, and its target is walked
from the tree's root like any other path, so `..` and absolute targets stay inside (what containerd calls RootPath). That
holds without a chroot as well; the unpack worker has both.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from agent.errdefs import InvalidArgument

MAX_LINKS = 40
"""Symlinks followed on the way to one name (the kernel's own limit)."""
_MAX_OPEN = 256
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
WHITEOUT_DEVICE = os.makedev(0, 0)


class Directory:
    """An open directory of the tree, and where it really is: no symlinks in `path`, no slash around it, empty for the root."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path


class Tree:
    """`implied(directory, new)` is called for each directory that had to be made because something below it was wanted; `new`:
    in the place of a whiteout, so that it has nothing to do with one of that name in a lower layer."""

    def __init__(self, root: str, implied: Callable[[Directory, bool], None]) -> None:
        self._implied = implied
        self.root = Directory(os.open(root, _OPEN_DIRECTORY), b"")
        # By the path as asked for, and by the real one: most names have the parent of the one before.
        self._known: dict[bytes, Directory] = {}
        self._links = 0

    def close(self) -> None:
        self.forget()
        os.close(self.root.fd)

    def trim(self) -> None:
        """Bound the number of open directories. What `directory` returned before is invalid after it."""
        if len(self._known) > _MAX_OPEN:
            self.forget()

    def forget(self) -> None:
        """Close all directories that are held open: a name on the way to one has come to mean something else."""
        for fd in {directory.fd for directory in self._known.values()}:
            os.close(fd)
        self._known.clear()

    def directory(self, path: bytes) -> Directory:
        """The directory at `path` (components joined by single slashes), made with its parents where missing.

        Valid until `trim` or `forget`. Raises InvalidArgument: something that is no directory is in the way.
        """
        self._links = 0
        try:
            return self._walk(path)
        except RecursionError:
            raise InvalidArgument(f"{show(path)} leads too deep through symbolic links") from None

    def _walk(self, path: bytes) -> Directory:
        if not path:
            return self.root
        if (known := self._known.get(path)) is not None:
            return known
        above, _, name = path.rpartition(b"/")
        parent = self._walk(above)
        if name in (b"", b"."):
            found = parent
        elif name == b"..":  # of where we really are, not of how we were called
            found = self._walk(parent.path.rpartition(b"/")[0])
        else:
            found = self._step(parent, name)
        if found is not self.root:
            self._known[path] = self._known[found.path] = found
        return found

    def _step(self, parent: Directory, name: bytes) -> Directory:
        real = parent.path + b"/" + name if parent.path else name
        if (known := self._known.get(real)) is not None:
            return known
        try:
            return Directory(os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd), real)
        except FileNotFoundError:
            over_whiteout = False
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            status = os.lstat(name, dir_fd=parent.fd)
            if stat.S_ISLNK(status.st_mode):
                return self._follow(parent, name)
            if not is_whiteout(status):
                raise InvalidArgument(f"{show(real)} is not a directory, but the layer has something below it") from None
            os.unlink(name, dir_fd=parent.fd)
            over_whiteout = True
        os.mkdir(name, 0o755, dir_fd=parent.fd)
        made = Directory(os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd), real)
        self._implied(made, over_whiteout)
        return made

    def _follow(self, parent: Directory, name: bytes) -> Directory:
        self._links += 1
        if self._links > MAX_LINKS:
            raise InvalidArgument(f"{show(name)}: more than {MAX_LINKS} symbolic links on the way to one name")
        target = os.readlink(name, dir_fd=parent.fd)
        return self._walk(target.strip(b"/") if target.startswith(b"/") else (parent.path + b"/" + target).strip(b"/"))


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is how overlayfs says "not there": a character device 0, 0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == WHITEOUT_DEVICE


def show(path: bytes) -> str:
    """A path for a sentence."""
    return repr(path[:200].decode(errors="backslashreplace"))
