"""One look at a cgroup."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stall:
    """Time in which tasks stood still for want of a resource: shares of the last 10, 60, 300 seconds in percent, and in all, in ns."""

    avg10: float
    avg60: float
    avg300: float
    total: int


@dataclass(frozen=True, slots=True)
class Pressure:
    """PSI of one resource: when `some` task stood still, and when all (`full`) did. Older kernels have no `full` of the CPU."""

    some: Stall
    full: Stall | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, and numbers of faults. `available` is what is left below the cgroup's own limit; None without one."""

    usage: int
    working_set: int
    """`usage` without inactive page cache, which the kernel takes back first; what the kubelet evicts by."""
    rss: int
    page_faults: int
    major_page_faults: int
    available: int | None

    @classmethod
    def of(cls, usage: int, *, inactive_file: int, rss: int, page_faults: int, major_page_faults: int, limit: int | None) -> Memory:
        """The numbers come from files that are read one after the other, so one may be ahead of another: nothing is below zero for that."""
        working_set = max(0, usage - inactive_file)
        return cls(usage, working_set, rss, page_faults, major_page_faults, None if limit is None else max(0, limit - working_set))


@dataclass(frozen=True, slots=True)
class Swap:
    """Bytes; `available` is None without a limit."""

    usage: int
    available: int | None

    @classmethod
    def of(cls, usage: int, limit: int | None) -> Swap:
        return cls(usage, None if limit is None else max(0, limit - usage))


@dataclass(frozen=True, slots=True)
class Sample:
    """What the files of a cgroup said. A part is None where the host doesn't account for it.

    `time` is Unix time in ns, for people; `clock` the monotonic one, for rates.
    """

    time: int
    clock: int
    cpu: int | None = None
    """CPU time used since the cgroup was made, in ns."""
    memory: Memory | None = None
    swap: Swap | None = None
    tasks: int | None = None
    """Threads, as the pids controller counts."""
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None
