"""Processes of containers that the ledger doesn't have: they run on in a rootfs of ours that nobody will take down.

This is what a dead shim leaves whose containers nobody deleted (field-faults.md, measured). Told by the root of their mount
namespace, an overlay whose upper directory is one of our snapshots: that holds also where their cgroup is somebody else's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from agent.leaks import inits
from agent.leaks.finding import Finding, State, Thing
from agent.leaks.look import Look
from agent.leaks.node import INIT, Node, named, target
from agent.linux import files
from agent.linux.mountinfo import parse_mountinfo
from agent.linux.procfs import ProcessInfo
from agent.store.ledger import Kind

_ENDED = {errno.ENOENT, errno.ESRCH, errno.EINVAL}
"""What the table of a process answers that is gone, or has given its mount namespace back already."""


def find(look: Look) -> Iterator[Finding]:
    owned = look.owned.keys(Kind.SNAPSHOT, Kind.TASK)
    strays: dict[str, list[ProcessInfo]] = {}
    unreadable = dict(look.node.unreadable)
    snapshots = _Snapshots(look.node)
    for process in look.node.processes.values():
        try:
            key = "" if process.pid == INIT or inits.waits(process) else snapshots.of(process)
        except OSError as error:
            unreadable[process.pid] = str(error)
            continue
        if key and key not in owned:
            strays.setdefault(key, []).append(process)
    for key, processes in strays.items():
        yield Finding(
            kind=Thing.PROCESS,
            what=f"processes of container {key}",
            owner="orlop",
            state=State.LEAKED,
            why=f"{named(processes)} still in the rootfs of a container that the ledger doesn't have",
            releases="cgroup.kill of its cgroup, or SIGKILL by pidfd to each process; then the unmount of its rootfs",
            since=min(map(look.node.started, processes)),
            pins="the mount of its snapshot, and the cgroup of the container",
            targets=tuple(found for process in processes for found in target(process)),
        )
    if unreadable:
        pids = ", ".join(map(str, sorted(unreadable)))
        yield Finding(
            kind=Thing.PROCESS,
            what=f"process {pids}",
            owner="unknown",
            state=State.UNKNOWN,
            why=f"what it is, or which rootfs it is in, can't be read: {next(iter(unreadable.values()))}",
            releases="An audit as root can look at it",
        )


class _Snapshots:
    """The snapshot that a process has as its root; each mount namespace is read once."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known = {"": "", node.namespace("self", "mnt"): ""}

    def of(self, process: ProcessInfo) -> str:
        """Its key; empty: none of ours. Raises OSError."""
        namespace = self._node.namespace(process.pid, "mnt")
        if namespace not in self._known:
            self._known[namespace] = self._read(process.pid)
        return self._known[namespace]

    def _read(self, pid: int) -> str:
        try:
            table = parse_mountinfo(files.read(f"{self._node.places.proc}/{pid}/mountinfo"))
        except OSError as error:
            if error.errno not in _ENDED:
                raise
            return ""
        for mount in table:
            if mount.mount_point == Path("/") and mount.fstype == "overlay":
                for option in mount.super_options.split(","):
                    name, _, value = option.partition("=")
                    if name == "upperdir" and Path(value).parent.parent == self._node.places.snapshots:
                        return Path(value).parent.name
        return ""
