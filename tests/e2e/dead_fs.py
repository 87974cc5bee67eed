"""A file system whose server stops answering, as NFS without its server does: who looks into it waits, and SIGKILL doesn't end that.

A FUSE server of two operations. What it has read and not answered can't be taken back by the kernel, which is what makes the wait
uninterruptible (state D). Closing the server frees everybody.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GETATTR, _INIT = 3, 26
_MAX_REQUEST = 1 << 17
_MNT_DETACH = 2


class DeadFileSystem:
    """Mounted at `path`, with nothing in it but its root directory. Made by `dead_file_system`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakes, self._wake = os.pipe2(os.O_CLOEXEC)
        self._alive = True
        self._silenced = threading.Event()
        _mount(path, self._fd)
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def dies(self) -> None:
        """From now on nothing is answered."""
        self._alive = False

    def is_waited_for(self) -> bool:
        """Whether somebody waits for an answer that won't come."""
        return self._silenced.is_set()

    def goes_away(self) -> None:
        """Everybody who waits gets an error. Idempotent."""
        if self._fd >= 0:
            os.write(self._wake, b"x")
            self._server.join()
            for fd in (self._fd, self._wake, self._wakes):
                os.close(fd)
            self._fd = -1

    def _serve(self) -> None:
        while self._wakes not in select.select([self._fd, self._wakes], [], [])[0]:
            try:
                request = os.read(self._fd, _MAX_REQUEST)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOENT, errno.EINTR):  # somebody else's, or taken back
                    continue
                return  # unmounted
            _, operation, unique = struct.unpack_from("=IIQ", request)
            if operation == _INIT:
                self._answer(unique, struct.pack("=IIIIHHI", 7, 22, 0, 0, 0, 0, 4096))
            elif not self._alive:
                self._silenced.set()
            elif operation == _GETATTR:
                self._answer(unique, struct.pack("=QIIQQQQQQIIIIIIIIII", 0, 0, 0, 1, *[0] * 5, *[0] * 3, stat.S_IFDIR | 0o755, 2, *[0] * 5))
            else:
                self._answer(unique, error=errno.ENOSYS)

    def _answer(self, unique: int, data: bytes = b"", error: int = 0) -> None:
        os.write(self._fd, struct.pack("=IiQ", 16 + len(data), -error, unique) + data)


@contextmanager
def dead_file_system(path: Path) -> Iterator[DeadFileSystem]:
    """One that answers until it `dies()`; it is unmounted at the end. A directory that is there already is covered meanwhile."""
    made_here = not path.exists()
    if made_here:
        path.mkdir()
    made = DeadFileSystem(path)
    try:
        yield made
    finally:
        made.goes_away()
        _libc.umount2(bytes(path), _MNT_DETACH)
        if made_here:
            path.rmdir()


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(path: Path, fd: int) -> None:
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc.mount(b"dead", bytes(path), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), f"fuse at {path}: {os.strerror(ctypes.get_errno())}")
