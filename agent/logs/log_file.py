"""One container's CRI log file. Used by the copier, from the thread that has the container's turn; every call can block."""

from __future__ import annotations

import errno
import os
import stat
import time

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
_RETRY = 1.0
"""Seconds between attempts to open a log that could not be opened."""


class LogFile:
    """Appends records, and goes on when it can't: a container must not block, or end, because its log's disk is full.

    A record that was cut off, by a full disk or by a SIGKILL of the copier within a write, is ended with a newline before
    the next one, so that it spoils no other.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.errors = 0
        """Writes, or attempts to open, that failed."""
        self.dropped = 0
        """Bytes of records that are not in the log."""
        self.last_error = ""
        self._descriptor = -1
        self._torn = False
        self._next_attempt = 0.0

    def open(self) -> None:
        """Append to the file that is at the path now; one that is open is closed once the new one is.

        Raises:
            OSError: with a sentence; the file that was open still is.
        """
        try:
            descriptor = os.open(self.path, _FLAGS, 0o640)
        except OSError as error:
            raise OSError(error.errno, _sentence(self.path, error)) from error
        try:
            torn = _is_torn(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise OSError(error.errno, _sentence(self.path, error)) from error
        self.close()
        self._descriptor, self._torn = descriptor, torn

    def write(self, records: bytes) -> None:
        """Append `records`, whole ones, in one write. What doesn't go in is dropped and counted."""
        written = 0
        data = memoryview(b"\n" + records if self._torn else records)
        try:
            if self._descriptor < 0:
                self._open_again()
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            self._torn = False
        except OSError as error:
            self.errors += 1
            self.dropped += min(len(records), len(data) - written)
            self.last_error = error.strerror or str(error)  # not the number: the sentence is raised again, and again
            if written:
                self._torn = data[written - 1] != ord("\n")

    def close(self) -> None:
        """Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open_again(self) -> None:
        now = time.monotonic()
        if now < self._next_attempt:
            raise OSError(errno.EBADF, self.last_error)
        self._next_attempt = now + _RETRY
        self.open()


def _is_torn(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and os.pread(descriptor, 1, status.st_size - 1) != b"\n"


def _sentence(path: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"the log {path} can't be opened, as its directory {os.path.dirname(path)} doesn't exist"
        case errno.ELOOP:
            return f"the log {path} is a symbolic link, which is not followed"
        case _:
            return f"the log {path} can't be opened: {error.strerror}"
