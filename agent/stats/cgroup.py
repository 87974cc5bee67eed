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
        self._v1 = "cpuacct" in directories or "memory" in directories

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
            return self._read_v1() if self._v1 else self._read_v2()
        except _GoneError:
            return None

    def oom_kills(self) -> int:
        """How many of its processes the OOM killer has killed, for its own limit or one above; 0 if it is gone."""
        try:
            data = self._file("memory", "memory.oom_control") if self._v1 else self._unified("memory.events")
        except _GoneError:
            return 0
        return parsers.value(parsers.flat(data or b""), b"oom_kill")

    def _read_v1(self) -> Sample:
        now, clock = time.time_ns(), time.monotonic_ns()
        cpu = parsers.number(self._file("cpuacct", "cpuacct.usage"))
        usage = parsers.number(self._file("memory", "memory.usage_in_bytes"))
        memory = swap = None
        if usage is not None:
            stat = parsers.flat(self._file("memory", "memory.stat") or b"")
            limit = parsers.limit(self._file("memory", "memory.limit_in_bytes"))
            memory = Memory.of(
                usage,
                inactive_file=parsers.value(stat, b"total_inactive_file"),
                rss=parsers.value(stat, b"total_rss"),
                page_faults=parsers.value(stat, b"total_pgfault"),
                major_page_faults=parsers.value(stat, b"total_pgmajfault"),
                limit=limit,
            )
            if b"total_swap" in stat:
                both = parsers.limit(self._file("memory", "memory.memsw.limit_in_bytes"))
                allowed = None if both is None or limit is None else both - limit
                swap = Swap.of(parsers.value(stat, b"total_swap"), allowed)
        tasks = parsers.number(self._file("pids", "pids.current"))
        return Sample(now, clock, cpu, memory, swap, tasks)

    def _read_v2(self) -> Sample:
        now, clock = time.time_ns(), time.monotonic_ns()
        cpu = parsers.flat(self._unified("cpu.stat") or b"")
        usage = parsers.number(self._unified("memory.current"))
        memory = swap = None
        if usage is not None:
            stat = parsers.flat(self._unified("memory.stat") or b"")
            memory = Memory.of(
                usage,
                inactive_file=parsers.value(stat, b"inactive_file"),
                rss=parsers.value(stat, b"anon"),  # v2 has no better word for it; cAdvisor and containerd say the same
                page_faults=parsers.value(stat, b"pgfault"),
                major_page_faults=parsers.value(stat, b"pgmajfault"),
                limit=parsers.limit(self._unified("memory.max")),
            )
            swapped = parsers.number(self._unified("memory.swap.current"))
            if swapped is not None:
                swap = Swap.of(swapped, parsers.limit(self._unified("memory.swap.max")))
        return Sample(
            now,
            clock,
            cpu=parsers.value(cpu, b"usage_usec") * 1000 if b"usage_usec" in cpu else None,
            memory=memory,
            swap=swap,
            tasks=parsers.number(self._unified("pids.current")),
            cpu_pressure=parsers.pressure(self._unified("cpu.pressure")),
            memory_pressure=parsers.pressure(self._unified("memory.pressure")),
            io_pressure=parsers.pressure(self._unified("io.pressure")),
        )

    def _unified(self, name: str) -> bytes | None:
        return self._file(cgroupfs.UNIFIED, name)

    def _file(self, controller: str, name: str) -> bytes | None:
        """A file's content; None if the cgroup doesn't have that file.

        Raises:
            _GoneError: the cgroup isn't there.
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
                raise _GoneError from error
            return None


class _GoneError(Exception):
    """The cgroup was removed."""
