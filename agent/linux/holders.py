"""Who keeps a mount busy: processes, by what of theirs lies on it, and mount namespaces that have a copy of it.

Blocks, and can hang on a process that is stuck in the kernel, so `mounts.Mounts.holders` runs it in a throw-away thread and
takes what was found by then. What can't hang is looked at first: links, tables of mounts and names. Command lines and mappings
come last, since both are read under the lock of that process's memory. Links are read, never followed, and no path is looked
up: the mount may be of a dead server.
A mount namespace without a process (kept by a bind mount or a descriptor alone) can't be seen from /proc.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from agent import metrics
from agent.linux import cgroupfs, files, procfs
from agent.linux.mountinfo import MountInfo, is_below, parse_below, parse_mountinfo

How = Literal["cwd", "root", "exe", "fd", "map", "mount namespace"]

_COMMAND_LENGTH = 120
_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")
"""In a cgroup's path, as kubelets name pods; with the systemd driver the dashes of the uid are underscores."""


@dataclass(frozen=True)
class Holder:
    """One reason why a mount is busy. For a process with several open files there only the first is told."""

    pid: int
    """For a mount namespace: its process with the lowest number."""
    command: str
    how: How
    path: str
    """What is held, as that process sees it."""
    cgroup: str
    namespace: str = ""
    """Its mount namespace, where that is another one than ours: "mnt:[4026532000]"."""

    @property
    def pod(self) -> str:
        """The uid of the pod whose cgroup it is in; empty: none that can be told."""
        found = _POD.search(self.cgroup)
        return found[1].replace("_", "-") if found else ""

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.command})" + (f" of pod {self.pod}" if self.pod else "")
        elsewhere = f", in mount namespace {self.namespace}" if self.namespace else ""
        return f"{who} by its {self.how} {procfs.printable(self.path)}{elsewhere}, cgroup {self.cgroup}"


def find_holders(path: Path, proc: Path, found: list[Holder]) -> None:
    """Append to `found`, as they are met, the holders of the topmost mount at `path` and of what is below that path."""
    table = files.read(f"{proc}/self/mountinfo")
    target = next((mount for mount in reversed(parse_below(table, path)) if mount.mount_point == path), None)
    search = _Search(path, proc, target, target is not None and len(_of_device(table, target.device)) == 1)
    pids = procfs.pids(proc)
    for look in (search.links, search.namespace):
        for pid in pids:
            with contextlib.suppress(OSError):  # it is gone, or a kernel thread
                found += [search.holder(pid, how, what) for how, what in look(pid)]
    _tell_command_lines(found, proc)
    known = len(found)
    for pid in pids:
        with contextlib.suppress(OSError):
            found += [search.holder(pid, how, what) for how, what in search.mapping(pid)]
    _tell_command_lines(found, proc, known)


def count_holders(holders: Sequence[Holder], *, below: bool = False) -> None:
    """Count in the metrics by what a mount was found busy; `below`: by mounts on it, too."""
    kinds = [*(holder.how for holder in holders), *(["mount"] if below else [])]
    for kind in kinds or ["unseen"]:
        metrics.mount_busy_holders.labels(kind).inc()


class _Search:
    """The looks at one process. Each yields what it holds: how, and the path."""

    def __init__(self, path: Path, proc: Path, target: MountInfo | None, alone: bool) -> None:
        self._path = path
        self._proc = proc
        self._target = target
        # Of a file system that is mounted here only, every mapping is a holder, also of processes that see it elsewhere.
        self._device = target.device if target is not None and target.root == "/" and alone else ""
        self._own = os.readlink(f"{proc}/self/ns/mnt")
        self._namespaces = {self._own}

    def holder(self, pid: int, how: How, what: str) -> Holder:
        """By its name, which is told without the lock of its memory."""
        namespace = ""
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"{self._proc}/{pid}/ns/mnt")
        return Holder(pid, _comm(self._proc, pid), how, what, _cgroup(self._proc, pid), "" if namespace == self._own else namespace)

    def links(self, pid: int) -> Iterator[tuple[How, str]]:
        hows: tuple[How, ...] = ("cwd", "root", "exe")
        for how in hows:
            with contextlib.suppress(OSError):
                if is_below(link := os.readlink(f"{self._proc}/{pid}/{how}"), self._path):
                    yield how, link
        for descriptor in os.listdir(f"{self._proc}/{pid}/fd"):
            with contextlib.suppress(OSError):
                if is_below(link := os.readlink(f"{self._proc}/{pid}/fd/{descriptor}"), self._path):
                    yield "fd", link
                    return

    def namespace(self, pid: int) -> Iterator[tuple[How, str]]:
        namespace = os.readlink(f"{self._proc}/{pid}/ns/mnt")
        if namespace in self._namespaces:
            return
        self._namespaces.add(namespace)
        if copies := self._copies(files.read(f"{self._proc}/{pid}/mountinfo")):
            yield "mount namespace", os.fspath(copies[0].mount_point)

    def mapping(self, pid: int) -> Iterator[tuple[How, str]]:
        for line in files.read(f"{self._proc}/{pid}/maps").split(b"\n"):
            fields = line.split(None, 5)  # addresses, permissions, offset, device in hex, inode, path
            if len(fields) == 6 and (is_below(os.fsdecode(fields[5]), self._path) or self._is_device(fields[3])):
                yield "map", os.fsdecode(fields[5])
                return

    def _is_device(self, device: bytes) -> bool:
        major, _, minor = device.partition(b":")
        return bool(self._device) and f"{int(major, 16)}:{int(minor, 16)}" == self._device

    def _copies(self, table: bytes) -> list[MountInfo]:
        """The mounts of another namespace that are of the same tree, or, when nothing is mounted here, at the same place."""
        if self._target is None:
            return parse_below(table, self._path)
        root = Path(self._target.root)
        return [mount for mount in _of_device(table, self._target.device) if is_below(mount.root, root)]


def _of_device(table: bytes, device: str) -> list[MountInfo]:
    """The mounts of one file system, found without parsing those of the others: every mount namespace has its thousands."""
    lines = [line for line in table.split(b"\n") if f" {device} ".encode() in line]
    return [mount for mount in parse_mountinfo(b"\n".join(lines)) if mount.device == device]


def _tell_command_lines(found: list[Holder], proc: Path, begin: int = 0) -> None:
    """Replace names by command lines, where there are any."""
    for index in range(begin, len(found)):
        with contextlib.suppress(OSError):
            arguments = " ".join(procfs.split_arguments(files.read(f"{proc}/{found[index].pid}/cmdline")))
            if arguments:
                found[index] = replace(found[index], command=procfs.printable(arguments[:_COMMAND_LENGTH]))


def _comm(proc: Path, pid: int) -> str:
    with contextlib.suppress(OSError):
        return procfs.printable(os.fsdecode(files.read(f"{proc}/{pid}/comm")).strip())
    return "gone"


def _cgroup(proc: Path, pid: int) -> str:
    """The most telling of its cgroups: on v1 some hierarchies may have it in their root."""
    with contextlib.suppress(OSError):
        return max(cgroupfs.parse_membership(files.read(f"{proc}/{pid}/cgroup")).values(), key=len, default="/")
    return "unknown"
