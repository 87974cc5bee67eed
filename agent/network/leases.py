"""Addresses that host-local gave out: what is leased to a sandbox that nobody knows is a leak.

host-local (the reference IPAM plugin) keeps one file per address, `<dir>/<network>/<address>`, with two lines: container id
and interface name (old versions: the id alone). No plugin implements CNI GC for them, so the agent compares itself (`orlop audit`).

It makes the file, then writes it, and waits for no disk. After a power cut the name is there and the content isn't; then no DEL finds
the address, since that looks for the container's id, and it is taken for ever. So the daemon removes such files when it starts.
Blocking; callers use a thread.
"""

from __future__ import annotations

import fcntl
import ipaddress
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("/var/lib/cni/networks")
_LONGEST = 4096
_BLANK = "\0 \t\r\n"
"""Nothing, as some file systems have it: xfs shows what was never written as NULs."""
_LOCK = "lock"
_LOCK_TRIES, _LOCK_PAUSE = 50, 0.02
"""host-local holds its lock for milliseconds; one that is held for a second is left alone."""


@dataclass(frozen=True)
class Lease:
    """One address that is taken. `sandbox` is empty if its file names nobody (written never, or not to the disk)."""

    network: str
    ip: str
    sandbox: str
    ifname: str
    path: Path


def read_leases(directory: Path = DIRECTORY) -> list[Lease]:
    """All leases below `directory`, by network and file name. What vanishes while we look is left out.

    Raises:
        OSError: the directory is there but can't be read.
    """
    found = []
    for network in _entries(directory):
        for path in _entries(network):
            # The directory also holds `lock` and `last_reserved_ip.N`.
            if _is_address(path.name) and (content := _read(path)) is not None:
                sandbox, _, ifname = content.partition("\n")
                found.append(Lease(network.name, path.name, sandbox.strip(_BLANK), ifname.strip(_BLANK), path))
    return found


def drop_unwritten(directory: Path = DIRECTORY) -> list[Lease]:
    """Remove the leases that name nobody, and return them. Under host-local's own lock, so that none is one that is being written.

    Raises:
        OSError: as `read_leases`, or one can't be removed.
    """
    dropped = []
    for network in sorted({lease.path.parent for lease in read_leases(directory) if not lease.sandbox}):
        with _locked(network) as locked:
            for lease in read_leases(directory) if locked else []:
                if lease.path.parent == network and not lease.sandbox:
                    lease.path.unlink(missing_ok=True)
                    dropped.append(lease)
    return dropped


@contextmanager
def _locked(network: Path) -> Iterator[bool]:
    """Whether we have the lock that host-local takes for a network (flock(2) of its file `lock`)."""
    with (network / _LOCK).open("ab") as file:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE)
            else:
                yield True
                return
        yield False


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _read(path: Path) -> str | None:
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(_LONGEST).decode(errors="replace")
    except FileNotFoundError:
        return None
