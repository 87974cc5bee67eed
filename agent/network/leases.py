"""Addresses that host-local gave out, for `orlop audit`: what is leased to a sandbox that nobody knows is a leak.

host-local (the reference IPAM plugin) keeps one file per address, `<dir>/<network>/<address>`, with two lines: container id
and interface name (old versions: the id alone). No plugin implements CNI GC for them, so the agent compares itself.
Blocking; callers use a thread.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("/var/lib/cni/networks")
_LONGEST = 4096


@dataclass(frozen=True)
class Lease:
    """One address that is taken. `sandbox` is empty if its file names nobody (host-local died between making and writing it)."""

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
                found.append(Lease(network.name, path.name, sandbox.strip(), ifname.strip(), path))
    return found


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
