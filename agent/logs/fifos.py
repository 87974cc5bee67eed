"""FIFO directories: `<state>/io/<container or exec id>/{stdout,stderr}`, with a terminal only stdout.

Used by the log copier's client and by `Capture`. Every function blocks and raises OSError; call them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_MODE = 0o700


@dataclass(frozen=True)
class Stdio:
    """What a task or exec request says of its streams; an empty string is 'none'."""

    stdout: str
    stderr: str
    stdin: str = ""


def stdio(directory: Path, terminal: bool) -> Stdio:
    """The paths for the shim. A terminal has one stream, stdout (runtime-v2.md 8)."""
    return Stdio(str(directory / "stdout"), "" if terminal else str(directory / "stderr"))


def make(directory: Path, terminal: bool) -> None:
    """Make the directory and its FIFOs, for us alone; what is there already, from an attempt that was cut off, is kept."""
    directory.mkdir(_MODE, parents=True, exist_ok=True)
    for name in _names(terminal):
        with contextlib.suppress(FileExistsError):
            os.mkfifo(directory / name, _MODE)


def open_for_reading(directory: Path, terminal: bool) -> dict[str, int]:
    """Read ends by stream name. Never waits for a writer, and sees end of file, unlike O_RDWR."""
    descriptors: dict[str, int] = {}
    try:
        for name in _names(terminal):
            path = directory / name
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            descriptors[name] = descriptor
            if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a FIFO", str(path))
    except BaseException:
        close(descriptors)
        raise
    return descriptors


def make_and_open(directory: Path, terminal: bool) -> dict[str, int]:
    """`make`, then `open_for_reading`."""
    make(directory, terminal)
    return open_for_reading(directory, terminal)


def close(descriptors: dict[str, int]) -> None:
    """Close the read ends, each once."""
    while descriptors:
        os.close(descriptors.popitem()[1])


def remove(directory: Path) -> None:
    """Remove the FIFOs and the directory; nothing there is fine, anything else in it is ENOTEMPTY."""
    for name in _names(terminal=False):
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()


def _names(terminal: bool) -> tuple[str, ...]:
    return ("stdout",) if terminal else ("stdout", "stderr")
