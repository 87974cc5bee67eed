"""The node at one moment: what several detectors look at is read once, and shared. Blocks; `audit` takes it in a thread."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from agent.leaks import commands, owners
from agent.leaks.commands import MonitorCommand, ShimCommand
from agent.leaks.owners import Runtime
from agent.leaks.places import Places
from agent.leaks.targets import ProcessTarget
from agent.linux import cgroupfs, files, procfs
from agent.linux.mountinfo import MountInfo, parse_below
from agent.linux.procfs import ProcessInfo

INIT = 1
"""The node's own init is in no container; and where we are in a container ourselves, it may be beyond our rights to look at."""


@dataclass(frozen=True)
class Node:
    """One look. `taken` and `booted` are Unix seconds."""

    places: Places
    taken: float
    booted: float
    processes: Mapping[int, ProcessInfo]
    unreadable: Mapping[int, str]
    """Processes of which nothing can be told, and why."""
    mounts: Sequence[MountInfo]
    """At and below the agent's directories, and those of other runtimes."""
    hierarchies: Mapping[str, Path]
    another_orlop: bool
    """Another `orlop serve` runs on it."""
    runtimes: Sequence[Runtime]
    """Other runtimes on the node that can be asked what they have: what they make can look like ours."""

    @classmethod
    def take(cls, places: Places, *, served: bool, now: float) -> Node:
        """Look. `served`: one of the daemons that are seen is ours.

        Raises:
            OSError: /proc or the cgroup file system can't be read at all.
        """
        hierarchies = cgroupfs.hierarchies(places.cgroup_root)
        processes, unreadable = _processes(places.proc, hierarchies)
        runtimes = owners.discover(processes.values(), places.other_runtimes, places.address, places.proc)
        another_orlop = sum(commands.is_daemon(process.cmdline) for process in processes.values()) > int(served)
        return cls(
            places=places,
            taken=now,
            booted=_boot_time(places.proc),
            processes=processes,
            unreadable=unreadable,
            mounts=_mounts(places, runtimes),
            hierarchies=hierarchies,
            another_orlop=another_orlop,
            runtimes=runtimes,
        )

    @cached_property
    def shims(self) -> dict[int, ShimCommand]:
        """Everybody's shims and their helpers, by pid."""
        found = {pid: commands.shim(process.cmdline) for pid, process in self.processes.items()}
        return {pid: shim for pid, shim in found.items() if shim is not None}

    @cached_property
    def monitors(self) -> dict[int, MonitorCommand]:
        """Every `conmon`, by pid."""
        found = {pid: commands.monitor(process.cmdline) for pid, process in self.processes.items()}
        return {pid: monitor for pid, monitor in found.items() if monitor is not None}

    def alive(self, pid: int, start_time: int) -> bool | None:
        """Whether the process that was once identified so runs; None: can't be told."""
        if pid in self.unreadable:
            return None
        process = self.processes.get(pid)
        return process is not None and process.start_time == start_time and process.state not in "ZX"

    def started(self, process: ProcessInfo) -> float:
        """When it started, in Unix seconds."""
        return self.booted + process.start_time / os.sysconf("SC_CLK_TCK")

    def in_cgroup(self, path: str) -> list[ProcessInfo]:
        """The processes in a cgroup and below it, in any hierarchy."""
        return [process for process in self.processes.values() if any(_is_below(cgroup, path) for cgroup in process.cgroups.values())]

    def cgroups_in(self, path: str) -> dict[str, Path]:
        """The cgroups right below a path: name to one of their directories. Raises OSError."""
        found: dict[str, Path] = {}
        for mount in self.hierarchies.values():
            try:
                with os.scandir(mount / cgroupfs.relative(path)) as entries:
                    found.update({entry.name: Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)})
            except (FileNotFoundError, NotADirectoryError):
                continue  # on v1 a path can be in some hierarchies only
        return found

    def cgroups_below(self, tops: Sequence[str], depth: int) -> dict[str, Path]:
        """The cgroups at most `depth` levels below any of `tops`: path to one of their directories. Raises OSError."""
        found: dict[str, Path] = {}
        level = list(tops)
        for _ in range(depth):
            level = [f"{path}/{name}" for path in level for name in self._remember(path, found)]
        return found

    def _remember(self, path: str, found: dict[str, Path]) -> list[str]:
        inside = self.cgroups_in(path)
        found.update({f"{path}/{name}": directory for name, directory in inside.items()})
        return list(inside)

    def has_cgroup(self, path: str) -> bool:
        """Whether any hierarchy has it."""
        return self.cgroup_directory(path) is not None

    def cgroup_directory(self, path: str) -> Path | None:
        """One of the directories of a cgroup; None: no hierarchy has it."""
        directories = (mount / cgroupfs.relative(path) for mount in self.hierarchies.values())
        return next((directory for directory in directories if directory.is_dir()), None)

    def links(self, pid: int) -> list[str]:
        """Where the descriptors of a process lead; nowhere if it is gone. Raises OSError: not to be seen."""
        return list(_links(f"{self.places.proc}/{pid}/fd"))

    def namespace(self, pid: int | Literal["self"], kind: str) -> str:
        """The namespace of a process, as the kernel names it ("net:[4026531840]"); empty: it is gone. Raises OSError."""
        try:
            return os.readlink(f"{self.places.proc}/{pid}/ns/{kind}")
        except (FileNotFoundError, ProcessLookupError):
            return ""

    @cached_property
    def bound_sockets(self) -> dict[int, Path]:
        """Unix sockets with a path: inode to path (proc_net(5)). Of this network namespace, which is the one that shims are in."""
        table = os.fsdecode(files.read(f"{self.places.proc}/net/unix"))
        rows = (line.split(None, 7) for line in table.split("\n")[1:])
        return {int(row[6]): Path(row[7]) for row in rows if len(row) == 8 and row[7].startswith("/")}

    def sockets_of(self, pid: int) -> list[Path]:
        """Where a process listens. Raises OSError."""
        inodes = (link.removeprefix("socket:[").removesuffix("]") for link in self.links(pid) if link.startswith("socket:["))
        return sorted({path for number in inodes if (path := self.bound_sockets.get(int(number))) is not None})

    @cached_property
    def nsfs(self) -> int:
        """The device of all namespace files. Raises OSError."""
        return os.stat(f"{self.places.proc}/self/ns/net").st_dev


def target(process: ProcessInfo, *, graceful: bool = False) -> tuple[ProcessTarget, ...]:
    """A process, for `reap`."""
    return (ProcessTarget(process.pid, process.start_time, longest_cgroup(process), graceful),)


def longest_cgroup(process: ProcessInfo) -> str:
    """The most telling of its cgroups: on v1 some hierarchies may have it in their root."""
    return max(process.cgroups.values(), key=len, default="")


def named(processes: Sequence[ProcessInfo], limit: int = 5) -> str:
    """Processes for a sentence."""
    names = [f"process {process.pid} ({procfs.printable(process.comm)})" for process in processes[:limit]]
    return ", ".join(names) + (f" and {len(processes) - limit} more" if len(processes) > limit else "")


def _processes(proc: Path, hierarchies: Mapping[str, Path]) -> tuple[dict[int, ProcessInfo], dict[int, str]]:
    """As `procfs.scan`, but one row that can't be read doesn't hide the others; and cgroups as the node has them, also in a pod."""
    found, unreadable = {}, {}
    for pid in procfs.pids(proc):
        try:
            stat = procfs.parse_stat(files.read(f"{proc}/{pid}/stat"))
            arguments = procfs.split_arguments(files.read(f"{proc}/{pid}/cmdline"))
            cgroups = cgroupfs.parse_membership(files.read(f"{proc}/{pid}/cgroup"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        except (OSError, ValueError) as error:
            unreadable[pid] = str(error)
        else:
            found[pid] = ProcessInfo(pid, stat.ppid, stat.comm, arguments, stat.state, stat.start_time, cgroups)
    if (mount := hierarchies.get(cgroupfs.UNIFIED)) is not None:
        memberships = cgroupfs.of_node({pid: process.cgroups for pid, process in found.items()}, proc, mount)
        found = {pid: replace(process, cgroups=memberships[pid]) for pid, process in found.items()}
    return found, unreadable


def _mounts(places: Places, runtimes: Sequence[Runtime]) -> list[MountInfo]:
    """The table has real paths."""
    table = files.read(f"{places.proc}/self/mountinfo")
    tops = {places.state_dir, places.root_dir, *(runtime.state for runtime in runtimes if runtime.state)}
    found = [mount for top in tops for mount in parse_below(table, Path(os.path.realpath(top)))]
    return sorted({mount.mount_id: mount for mount in found}.values(), key=lambda mount: mount.mount_id)


def _boot_time(proc: Path) -> float:
    for line in files.read(f"{proc}/stat").splitlines():
        if line.startswith(b"btime "):
            return float(line.split()[1])
    return 0.0


def _links(directory: str) -> Iterator[str]:
    try:
        for name in os.listdir(directory):
            try:
                yield os.readlink(f"{directory}/{name}")
            except FileNotFoundError:
                continue  # closed meanwhile
    except (FileNotFoundError, ProcessLookupError):
        return


def _is_below(cgroup: str, top: str) -> bool:
    return cgroup == top or cgroup.startswith(f"{top.rstrip('/')}/")
