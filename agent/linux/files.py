"""Files of /proc, /sys and cgroups: small, made up by the kernel at the moment of the call. Blocks; callers are in a thread."""

from __future__ import annotations

import errno
import os
import stat


def read(path: str) -> bytes:
    """A file as a whole, with fewer system calls than `Path.read_bytes` needs: these are read by the thousand."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(descriptor, 1 << 16):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(descriptor)


def read_own(path: str, limit: int) -> bytes:
    """A file that we, or what we started, have written: at most `limit` bytes of it. A link isn't followed, a FIFO not waited for.

    Raises:
        OSError: also if it is no regular file (EINVAL), or larger (EFBIG).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        data = os.read(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", path)
    return data


def write(path: str, text: str) -> None:
    """Write a control file in one call, as the kernel wants it; none is made. The error names the file, unlike write(2)'s own."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"writing {text!r}: {error.strerror}", path) from error
    finally:
        os.close(descriptor)
