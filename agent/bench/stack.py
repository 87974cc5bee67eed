"""The processes of a runtime, whichever it is: the daemon that listens on the socket, its helpers, the shims of its pods.

Their CPU time is read from cgroups, which count shims and engines that have ended, too. Which cgroups is known if the daemon has one of
its own that its shims are in as well, as containerd's under systemd; else it has to be said (`--cgroup`). Everything here blocks, but for
the methods of `Stack`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.aio import in_thread
from agent.errdefs import FailedPrecondition, NotFound
from agent.linux import cgroupfs, files, procfs
from agent.linux.procfs import ProcessInfo

_SHIMS = ("containerd-shim", "conmon")
"""How the processes begin that stay with a pod; comm is cut to 15 characters."""
_CONNECT_BUDGET = 5.0


@dataclass(frozen=True)
class Memory:
    """Bytes in memory, as if nothing else were on the machine: anonymous pages, and the pages of each mapped file once.

    Not proportional set sizes: a runtime that shares libraries with somebody, with `orlop bench` even, would seem to be smaller.
    """

    daemon: int
    """The daemon and its helpers: all of the stack but the shims."""
    shims: int


class Stack:
    """The stack behind one socket. `cgroups` are those that all of it is in; empty: to be found.

    `pods` is the cgroup of its pods, or a slice: what the engine does before a container runs, it does partly there.
    """

    def __init__(
        self,
        path: str,
        cgroups: Collection[str] = (),
        *,
        pods: str = "",
        root: Path = Path("/sys/fs/cgroup"),
        proc: Path = Path("/proc"),
    ) -> None:
        self._path = path
        self._given = tuple(f"/{cgroup.strip('/')}" for cgroup in cgroups)
        self._pods = cgroupfs.slice_path(pods) if pods.endswith(".slice") else pods
        self._root = root
        self._proc = proc

    async def memory(self) -> Memory:
        """Raises FailedPrecondition: who listens isn't in sight, or may not be looked at."""
        return await in_thread(self._memory)

    async def daemon_cpu(self) -> float:
        """Seconds that the daemon has used, its children not counted. Raises as `memory`."""
        return await in_thread(self._daemon_cpu)

    async def cpu(self) -> float:
        """Seconds that the whole stack has used, with everything that has ended. Raises as `memory`, or if its cgroups aren't known."""
        return await in_thread(self._cpu)

    async def check(self, sandbox: str) -> None:
        """Make sure that a running sandbox's shim is in the cgroups that `cpu` reads. Raises as `cpu`."""
        await in_thread(self._check, sandbox)

    def _memory(self) -> Memory:
        daemon, shims = _Pages(), _Pages()
        for process in self._members():
            (shims if _is_shim(process) else daemon).add(self._proc, process.pid)
        return Memory(daemon.size(), shims.size())

    def _daemon_cpu(self) -> float:
        fields = files.read(f"{self._proc}/{listener(self._path)}/stat").rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _cpu(self) -> float:
        mount, paths = self._cgroups()
        used = sum(cpu_usage(mount / cgroupfs.relative(path)) for path in paths)
        if self._pods and (pods := mount / cgroupfs.relative(self._pods)).is_dir():
            used += cpu_usage(pods)
        return used

    def _check(self, sandbox: str) -> None:
        mount, paths = self._cgroups()
        for process in procfs.scan(self._proc):
            if _is_shim(process) and any(sandbox in word for word in process.cmdline):
                own = _path(process)
                if not any(_below(own, path) for path in paths):
                    raise FailedPrecondition(
                        f"the shim of sandbox {sandbox[:13]}, process {process.pid}, is in cgroup {own}, outside of {', '.join(paths)}: "
                        f"name the cgroups of the whole stack with --cgroup {self._path}=PATH"
                    )
        for path in paths:
            cpu_usage(mount / cgroupfs.relative(path))

    def _cgroups(self) -> tuple[Path, tuple[str, ...]]:
        """The mount point of the hierarchy that counts CPU time, and the stack's cgroups in it."""
        mounted = cgroupfs.hierarchies(self._root)
        mount = next((path for names, path in mounted.items() if "cpuacct" in names.split(",")), mounted.get(cgroupfs.UNIFIED))
        if mount is None:
            raise FailedPrecondition(f"no cgroup hierarchy below {self._root} counts CPU time")
        if self._given:
            return mount, self._given
        processes = {process.pid: process for process in procfs.scan(self._proc)}
        daemon, we = processes.get(listener(self._path)), processes.get(os.getpid())
        own = _path(daemon) if daemon else ""
        if own in {"", "/"} or (we and _below(_path(we), own)):
            raise FailedPrecondition(
                f"the daemon is in cgroup {own or 'unknown'}, which others are in, too: "
                f"name the cgroups of the whole stack with --cgroup {self._path}=PATH"
            )
        return mount, (own,)

    def _members(self) -> list[ProcessInfo]:
        """Daemon, helpers and shims: who is in the stack's cgroups, else the daemon's descendants and what looks like a shim of its."""
        processes = list(procfs.scan(self._proc))
        daemon = listener(self._path)
        with suppress(FailedPrecondition):
            _, paths = self._cgroups()
            return [process for process in processes if process.pid == daemon or any(_below(_path(process), path) for path in paths)]
        family = descendants(processes, daemon)
        # A shim is told its daemon's socket, by which it reports.
        return [process for process in processes if process.pid in family or (_is_shim(process) and self._path in process.cmdline)]


def listener(path: str) -> int:
    """The process that listens on a unix socket.

    Raises:
        NotFound: nobody does.
        FailedPrecondition: it is out of sight, in another PID namespace; or process 1 listens for it.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_BUDGET)
        try:
            probe.connect(path)
        except OSError as error:
            raise NotFound(f"nobody serves {path}: {error.strerror or error}") from error
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if pid < 2:
        raise FailedPrecondition(f"the daemon of {path} is in another PID namespace, or activated by process 1, which listens for it")
    return int(pid)


def descendants(processes: Collection[ProcessInfo], top: int) -> set[int]:
    """`top`, its children and theirs; not what a shim started, which is a pod's."""
    found = {top}
    shims = {process.pid for process in processes if _is_shim(process)}
    while more := {process.pid for process in processes if process.ppid in found - shims} - found:
        found |= more
    return found


class _Pages:
    """What some processes have in memory, together."""

    def __init__(self) -> None:
        self._anonymous = 0
        self._files: dict[bytes, int] = {}
        """By device and inode: the most that one of the processes has of it."""

    def add(self, proc: Path, pid: int) -> None:
        """One that has ended has nothing. Raises FailedPrecondition: not for us to see."""
        try:
            text = files.read(f"{proc}/{pid}/smaps")
        except (FileNotFoundError, ProcessLookupError):
            return
        except PermissionError as error:
            raise FailedPrecondition(f"/proc/{pid}/smaps: {error.strerror}; `orlop bench` measures memory as root only") from error
        of_files: Counter[bytes] = Counter()
        file = b""
        for line in text.splitlines():
            name, *values = line.split()
            if not name.endswith(b":"):  # the beginning of a mapping: ADDRESSES MODE OFFSET DEVICE INODE PATH (proc_pid_smaps(5))
                file = b" ".join(values[2:4]) if values[3] != b"0" else b""
            elif name == b"Pss:" and not file:
                self._anonymous += int(values[0]) << 10
            elif name == b"Rss:" and file:
                of_files[file] += int(values[0]) << 10
            elif name == b"Anonymous:" and file:  # pages of a file that the process has changed are its own
                of_files[file] -= int(values[0]) << 10
                self._anonymous += int(values[0]) << 10
        for file, size in of_files.items():
            self._files[file] = max(self._files.get(file, 0), size)

    def size(self) -> int:
        return self._anonymous + sum(self._files.values())


def cpu_usage(directory: Path) -> float:
    """Seconds used by a cgroup and by all that ever was below it, v1 or v2.

    Raises:
        FailedPrecondition: there is no such cgroup.
    """
    with suppress(FileNotFoundError):
        return int(files.read(f"{directory}/cpuacct.usage")) / 1e9
    with suppress(FileNotFoundError):
        return int(dict(line.split() for line in files.read(f"{directory}/cpu.stat").splitlines())[b"usage_usec"]) / 1e6
    raise FailedPrecondition(f"there is no cgroup {directory} that counts CPU time")


def _is_shim(process: ProcessInfo) -> bool:
    return process.comm.startswith(_SHIMS)


def _path(process: ProcessInfo) -> str:
    """Its cgroup in the hierarchy that counts CPU time; empty if that is unknown."""
    controllers = {name: path for names, path in process.cgroups.items() for name in names.split(",")}
    return controllers.get("cpuacct", controllers.get(cgroupfs.UNIFIED, ""))


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")
