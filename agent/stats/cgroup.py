"""One container's or pod's cgroup, and how it is read on v1 and v2.

Blocks: reading `memory.stat` has the kernel add up what each CPU counted, and may wait for locks. Callers are threads, one at a
time per cgroup (`sampler`).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from agent.errdefs import InvalidArgument
from agent.linux import cgroupfs, files
from agent.stats import parsers
from agent.stats.sample import Memory, Sample, Swap

_ABSENT = {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP}
"""No such file in this cgroup or on this kernel; its cgroup was removed between open and read; PSI switched off at boot."""


class Cgroup:
    """Where the files of one cgroup are."""

    def __init__(self, directories: Mapping[str, str]) -> None:
        """`directories` by controller: "cpuacct", "memory", "pids" on v1, `cgroupfs.UNIFIED` on v2."""
        self._directories = directories
        self.v1 = "cpuacct" in directories or "memory" in directories
        """Whether its files are those of v1."""

    @classmethod
    def of_process(cls, membership: Mapping[str, str], controllers: Mapping[str, Path]) -> Cgroup:
        """Of a process whose /proc/PID/cgroup said `membership`; `controllers` as `Cgroups.controllers()`.

        A controller whose root the process is in is left out: its numbers would be the host's.
        """
        directories = {}
        for names, path in membership.items():
            for name in names.split(","):
                if name in controllers:
                    with suppress(InvalidArgument):
                        directories[name] = f"{controllers[name]}/{cgroupfs.relative(path)}"
        return cls(directories)

    @classmethod
    def at(cls, path: str, controllers: Mapping[str, Path]) -> Cgroup:
        """Of a path that is the same in every hierarchy: a pod's, which has no process of its own to ask."""
        return cls.of_process(dict.fromkeys(controllers, path), controllers)

    def read(self) -> Sample | None:
        """A sample; None when the cgroup is gone, also if it goes while it is read. Raises OSError for what no kernel should answer."""
        try:
            return self._read_v1() if self.v1 else self._read_v2()
        except GoneError:
            return None

    def oom_kills(self) -> int | None:
        """How many of its processes the OOM killer has killed, for its own limit or one above; None if it is gone.

        On v2 those of the cgroups below it count as well, also of those that are gone.
        """
        try:
            data = self.file("memory", "memory.oom_control") if self.v1 else self.unified("memory.events")
        except GoneError:
            return None
        return parsers.value(parsers.flat(data or b""), b"oom_kill")

    def processes(self) -> set[int] | None:
        """The processes in it and below it; None if it is nowhere. Raises GoneError, OSError."""
        controller = next((name for name in (("memory", "cpuacct") if self.v1 else (cgroupfs.UNIFIED,)) if name in self._directories), None)
        if controller is None:
            return None
        found = self.file(controller, "cgroup.procs") or b""
        directory = self._directories[controller]
        # A directory of a cgroup file system has a link more for each one in it, so that most need not be listed.
        if (links := _links(directory)) is not None and links != 2:
            below = [path for path, _, _ in os.walk(directory) if path != directory]
            found = b"\n".join([found, *(_members(path) for path in below)])
        return {int(number) for number in found.split()}

    def _read_v1(self) -> Sample:
        now, clock = time.time_ns(), time.monotonic_ns()
        cpu = parsers.number(self.file("cpuacct", "cpuacct.usage"))
        usage = parsers.number(self.file("memory", "memory.usage_in_bytes"))
        memory = swap = None
        if usage is not None:
            stat = parsers.flat(self.file("memory", "memory.stat") or b"")
            limit = parsers.limit(self.file("memory", "memory.limit_in_bytes"))
            memory = Memory.of(
                usage,
                inactive_file=parsers.value(stat, b"total_inactive_file"),
                rss=parsers.value(stat, b"total_rss"),
                page_faults=parsers.value(stat, b"total_pgfault"),
                major_page_faults=parsers.value(stat, b"total_pgmajfault"),
                limit=limit,
            )
            if b"total_swap" in stat:
                both = parsers.limit(self.file("memory", "memory.memsw.limit_in_bytes"))
                allowed = None if both is None or limit is None else both - limit
                swap = Swap.of(parsers.value(stat, b"total_swap"), allowed)
        tasks = parsers.number(self.file("pids", "pids.current"))
        return Sample(now, clock, cpu, memory, swap, tasks)

    def _read_v2(self) -> Sample:
        now, clock = time.time_ns(), time.monotonic_ns()
        cpu = parsers.flat(self.unified("cpu.stat") or b"")
        usage = parsers.number(self.unified("memory.current"))
        memory = swap = None
        if usage is not None:
            stat = parsers.flat(self.unified("memory.stat") or b"")
            memory = Memory.of(
                usage,
                inactive_file=parsers.value(stat, b"inactive_file"),
                rss=parsers.value(stat, b"anon"),  # v2 has no better word for it; cAdvisor and containerd say the same
                page_faults=parsers.value(stat, b"pgfault"),
                major_page_faults=parsers.value(stat, b"pgmajfault"),
                limit=parsers.limit(self.unified("memory.max")),
            )
            swapped = parsers.number(self.unified("memory.swap.current"))
            if swapped is not None:
                swap = Swap.of(swapped, parsers.limit(self.unified("memory.swap.max")))
        return Sample(
            now,
            clock,
            cpu=parsers.value(cpu, b"usage_usec") * 1000 if b"usage_usec" in cpu else None,
            memory=memory,
            swap=swap,
            tasks=parsers.number(self.unified("pids.current")),
            cpu_pressure=parsers.pressure(self.unified("cpu.pressure")),
            memory_pressure=parsers.pressure(self.unified("memory.pressure")),
            io_pressure=parsers.pressure(self.unified("io.pressure")),
        )

    def unified(self, name: str) -> bytes | None:
        """As `file`, of the v2 hierarchy."""
        return self.file(cgroupfs.UNIFIED, name)

    def file(self, controller: str, name: str) -> bytes | None:
        """A file's content; None if the cgroup doesn't have that file. `controller` as in `directories`.

        Raises:
            GoneError: the cgroup isn't there.
        """
        directory = self._directories.get(controller)
        if directory is None:
            return None
        try:
            return files.read(f"{directory}/{name}")
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            if error.errno == errno.ENODEV or not os.path.isdir(directory):
                raise GoneError from error
            return None


class GoneError(Exception):
    """The cgroup was removed."""


def _links(directory: str) -> int | None:
    try:
        return os.stat(directory).st_nlink
    except FileNotFoundError:
        return None


def _members(directory: str) -> bytes:
    """The processes of a cgroup below; none if it is gone by now, or is a threaded one, whose processes are listed above."""
    try:
        return files.read(f"{directory}/cgroup.procs")
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return b""
