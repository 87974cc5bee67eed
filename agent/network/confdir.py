"""The configuration directory, read when it changed, and the one file that is made in it, from a template. Blocking; `Network`
looks in a thread, once a second.

Looking is a listing and a stat per file, about 20 µs a file; inotify would save that, but not the second look that a
directory needs which is missing, renamed or mounted over.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from agent.errdefs import FailedPrecondition, InvalidArgument, Unavailable
from agent.network import template
from agent.network.conf import SUFFIXES, NetworkConfig, Selection, parse_list, select

GENERATED = "10-orlop-net.conflist"
"""Name of the file that is made from a template; as containerd's 10-containerd-net.conflist, it comes before most installers'."""
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Look:
    """What was seen in the directory. `files` tells whether it has changed since; `problem` is why it can't be listed."""

    files: tuple[tuple[str, int, int, int, int], ...] = ()
    selection: Selection = field(default_factory=lambda: Selection(None))
    problem: str = ""

    @property
    def network(self) -> NetworkConfig | None:
        return self.selection.network


def look(directory: Path, last: Look) -> Look:
    """Look again; `last` itself when nothing changed. Raises nothing: a directory that can't be listed keeps the last network."""
    try:
        files = tuple(sorted(_files(directory)))
    except FileNotFoundError:
        files = ()
    except OSError as error:
        problem = f"{directory} can't be read: {error.strerror}"
        return last if last.problem == problem else Look((), Selection(last.network), problem)
    if files == last.files and not last.problem:
        return last
    return Look(files, select([(name, _read(directory / name)) for name, *_ in files], last.network))


def _files(directory: Path) -> list[tuple[str, int, int, int, int]]:
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIXES):
                try:
                    status = entry.stat()  # through links: ConfigMaps are mounted as such
                except OSError:  # a dangling link: it is there, but broken; reading it says why
                    found.append((entry.name, 0, 0, 0, 0))
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    found.append((entry.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return found


def _read(path: Path) -> bytes | OSError:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hold us
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return OSError(errno.EINVAL, "not a regular file")
            content = file.read(_LARGEST + 1)
    except OSError as error:
        return error
    return content if len(content) <= _LARGEST else OSError(errno.EFBIG, f"larger than {_LARGEST} bytes")


def generate(directory: Path, source: Path, fields: template.Fields) -> None:
    """Make the network configuration `GENERATED` in `directory` from the template `source`: whole, on the disk, and usable, or not at all.

    Raises:
        FailedPrecondition: the template can't be read, isn't understood, or makes no network configuration.
        Unavailable: the file can't be written.
    """
    text = _read(source)
    if isinstance(text, OSError):
        raise FailedPrecondition(f"cni.conf_template {source} can't be read: {text.strerror}")
    try:
        content = template.render(text.decode(), fields).encode()
    except ValueError as error:  # a UnicodeDecodeError too
        raise FailedPrecondition(f"cni.conf_template {source}: {error}") from error
    try:
        parse_list(content, GENERATED)
    except InvalidArgument as error:
        raise FailedPrecondition(f"cni.conf_template {source}: what it makes can't be used: {error}") from error
    try:
        _write(directory / GENERATED, content)
    except OSError as error:
        raise Unavailable(f"network config {directory / GENERATED} can't be written: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # no suffix of `SUFFIXES`: nobody takes it for a network
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
