"""Cgroups by path, in every hierarchy at once: v1, v2, and both side by side.

A path ("/pods/xyz") is relative to each hierarchy's mount point; on v1 it can exist in some of them only. Nothing outside
of the given path is ever touched, so ancestors made by `create` stay. Callers: `agent.pods` (pod cgroups that no kubelet
made), `agent.runtime.v2` (what a dead shim or a failed create left), `agent.leaks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from agent import metrics
from agent.aio import in_thread
from agent.errdefs import Busy, DeadlineExceeded, FailedPrecondition
from agent.linux import cgroupfs, files, procfs
from agent.linux.processes import open_pidfd

_FIRST_POLL, _LAST_POLL = 0.002, 0.05
"""Seconds between two looks at whether a cgroup is empty, growing: v1 tells nobody when it becomes so."""
_REMOVE_RETRIES = (0.01, 0.03, 0.1, 0.3)
"""Seconds between the tries to remove a cgroup without processes: the kernel is still taking the last one apart."""
_GONE = {errno.ENOENT, errno.ENODEV}
"""What the files of a cgroup that was removed meanwhile answer at open, and at read."""


class Cgroups:
    """The cgroup hierarchies of the host. `root` and `proc` are other places in tests only."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> None:
        self._root = root
        self._proc = proc

    @cached_property
    def mode(self) -> cgroupfs.Mode:
        """How this host uses cgroups; "hybrid" is v1 controllers beside a v2 mount."""
        return cgroupfs.mode(self._hierarchies)

    @cached_property
    def _hierarchies(self) -> dict[str, Path]:
        return cgroupfs.hierarchies(self._root)

    async def controllers(self) -> Mapping[str, Path]:
        """Where each controller's hierarchy is mounted, by its name in /proc/PID/cgroup; v2 as a whole is `cgroupfs.UNIFIED`."""
        mounted = await in_thread(lambda: self._hierarchies)
        return {controller: mount for names, mount in mounted.items() for controller in names.split(",")}

    async def create(self, path: str) -> None:
        """Make `path`, and its ancestors, in every hierarchy where it is missing. v2 controllers are not delegated to it."""
        await in_thread(self._create, cgroupfs.relative(path))

    async def exists(self, path: str) -> bool:
        """Whether any hierarchy has `path`."""
        return bool(await in_thread(self._directories, cgroupfs.relative(path)))

    async def of_process(self, pid: int) -> dict[str, str]:
        """Where process `pid` is: controllers to path, as `cgroupfs.parse_membership`. Empty: it is gone."""
        try:
            return cgroupfs.parse_membership(await in_thread(files.read, f"{self._proc}/{pid}/cgroup"))
        except (FileNotFoundError, ProcessLookupError):
            return {}

    async def processes(self, path: str) -> set[int]:
        """The processes in `path` and below it, in any hierarchy."""
        return await in_thread(self._processes, cgroupfs.relative(path))

    async def kill(self, path: str, budget: float) -> None:
        """SIGKILL every process in `path` and below, and those that they fork meanwhile, until none is left.

        Raises:
            DeadlineExceeded: names those left after `budget` seconds.
            FailedPrecondition: we are in it ourselves, so it isn't what the caller takes it for.
        """
        await self._until_empty(path, budget, self._kill)

    async def named(self, path: str) -> str:
        """The processes in `path` and below, for a sentence: number, name, state, and where in the kernel one in state D waits."""
        return await in_thread(lambda: self._named(self._processes(cgroupfs.relative(path))))

    async def wait_empty(self, path: str, budget: float) -> None:
        """Return when no process is in `path` and below. Raises DeadlineExceeded as `kill`."""
        await self._until_empty(path, budget, self._processes)

    async def remove(self, path: str) -> None:
        """Remove `path` and what is below it in every hierarchy, if no process is in it. Nothing there: nothing happens.

        Raises:
            Busy: names the processes. Nothing was removed, unless one came meanwhile.
        """
        name = cgroupfs.relative(path)
        begin = time.monotonic()
        had = await in_thread(self._having, name)
        left, result = set(had), "failed"
        try:
            await self._remove(path, left)
        except Busy:
            result = "busy"
            raise
        finally:
            if had:
                metrics.cgroup_cleanup_seconds.observe(time.monotonic() - begin)
            for hierarchy in self._hierarchies:
                outcome = "gone" if hierarchy not in had else result if hierarchy in left else "removed"
                version = "v2" if hierarchy == cgroupfs.UNIFIED else "v1"
                metrics.cgroup_cleanups.labels(hierarchy or "unified", version, outcome).inc()

    async def _remove(self, path: str, hierarchies: set[str]) -> None:
        """Remove it from those `hierarchies`, from which is taken what is done."""
        name = cgroupfs.relative(path)
        if not hierarchies:
            return
        for delay in (*_REMOVE_RETRIES, None):
            if pids := await in_thread(self._processes, name):
                raise Busy(f"can't remove cgroup {path}: in it {await in_thread(self._named, pids)}. It stays until they are gone")
            left = await in_thread(self._remove_pass, name)
            hierarchies &= await in_thread(self._having, name)
            if not left:
                return
            if delay is not None:
                metrics.cgroup_cleanup_retries.inc()
                await asyncio.sleep(delay)
        raise Busy(f"can't remove cgroup {path}: the kernel holds {', '.join(map(str, left))}, though no process is in it. It stays")

    async def _until_empty(self, path: str, budget: float, look: Callable[[str], set[int]]) -> None:
        name = cgroupfs.relative(path)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + budget
        delay = _FIRST_POLL
        while pids := await in_thread(look, name):
            if loop.time() >= deadline:
                raise DeadlineExceeded(f"after {budget:g} s cgroup {path} still has {await in_thread(self._named, pids)}")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_POLL)

    def _directories(self, name: str) -> list[Path]:
        return [directory for mount in self._hierarchies.values() if (directory := mount / name).is_dir()]

    def _having(self, name: str) -> set[str]:
        return {hierarchy for hierarchy, mount in self._hierarchies.items() if (mount / name).is_dir()}

    def _subtree(self, name: str) -> Iterator[str]:
        """Every cgroup directory at and below `name`, in all hierarchies, parents first."""
        for top in self._directories(name):
            for directory, _, _ in os.walk(top):
                yield directory

    def _create(self, name: str) -> None:
        for hierarchy, mount in self._hierarchies.items():
            directory = mount
            for part in name.split("/"):
                parent, directory = directory, directory / part
                made = not directory.is_dir()
                directory.mkdir(exist_ok=True)
                if hierarchy != cgroupfs.UNIFIED and (made or directory == mount / name):  # an ancestor that was there is not ours
                    _inherit_cpuset(parent, directory)

    def _processes(self, name: str) -> set[int]:
        return {pid for directory in self._subtree(name) for pid in _members(directory)}

    def _kill(self, name: str) -> set[int]:
        """One round of `kill`; the processes that it found."""
        found = self._processes(name)
        if os.getpid() in found:
            raise FailedPrecondition(f"cgroup {name} has this very process in it and is not killed")
        if not found:
            return found
        tops = self._directories(name)
        try:
            if not all(_write_if_there(f"{top}/cgroup.kill", "1") for top in tops):  # v1, and v2 before Linux 5.14
                # Frozen, nobody gets away by forking faster than the list is read.
                for top in tops:
                    _write_if_there(f"{top}/freezer.state", "FROZEN")
                    _write_if_there(f"{top}/cgroup.freeze", "1")
                self._kill_by_number(name)
        finally:
            # By whomever frozen: on v1 such a process doesn't even die of SIGKILL.
            for directory in self._subtree(name):
                _write_if_there(f"{directory}/freezer.state", "THAWED")
                _write_if_there(f"{directory}/cgroup.freeze", "0")
        return found

    def _kill_by_number(self, name: str) -> None:
        held = {pid: pidfd for pid in self._processes(name) if (pidfd := open_pidfd(pid)) is not None}
        try:
            # The number may have come to mean another process before we held it. One that is listed here after that, and
            # that our pidfd still reaches, is in the cgroup.
            for pid in self._processes(name) & held.keys():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(held[pid], signal.SIGKILL)
        finally:
            for pidfd in held.values():
                os.close(pidfd)

    def _remove_pass(self, name: str) -> list[str]:
        """Try each directory once, the lowest first; those that are left."""
        left = []
        for directory in reversed(list(self._subtree(name))):
            try:
                os.rmdir(directory)
            except OSError as error:
                if error.errno in {errno.EBUSY, errno.ENOTEMPTY}:
                    left.append(directory)
                elif error.errno not in _GONE:
                    raise
        return left

    def _named(self, pids: set[int]) -> str:
        names = []
        for pid in sorted(pids)[:20]:
            try:
                stat = procfs.parse_stat(files.read(f"{self._proc}/{pid}/stat"))
                names.append(f"process {pid} ({procfs.printable(stat.comm)}, state {stat.state}{self._waits_in(pid, stat.state)})")
            except (FileNotFoundError, ProcessLookupError):
                names.append(f"process {pid}, which is ending")
        return ", ".join(names) + (f" and {len(pids) - 20} more" if len(pids) > 20 else "")

    def _waits_in(self, pid: int, state: str) -> str:
        """Where in the kernel one is that SIGKILL doesn't reach: that tells which driver or file system is at fault."""
        try:
            where = files.read(f"{self._proc}/{pid}/wchan").decode() if state == "D" else ""
        except OSError:
            return ""
        return f" in {where}" if where not in ("", "0") else ""


def _members(directory: str) -> set[int]:
    """The processes of one cgroup. One that other code removed meanwhile has none."""
    try:
        return {int(number) for number in files.read(f"{directory}/cgroup.procs").split()}
    except OSError as error:
        # A threaded cgroup of v2 doesn't list processes; the domain above it does.
        if error.errno in {*_GONE, errno.EOPNOTSUPP}:
            return set()
        raise


def _write_if_there(path: str, text: str) -> bool:
    """Write a control file; whether there is one."""
    try:
        files.write(path, text)
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    return True


def _inherit_cpuset(parent: Path, directory: Path) -> None:
    """A new v1 cpuset has no CPU and no memory node, and takes no process (ENOSPC) until it has."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        own = directory / name
        if own.exists() and not own.read_text().strip():
            own.write_text((parent / name).read_text())
