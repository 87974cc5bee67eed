"""All that a container's cgroup, and /proc for its processes, say in the words of the `descriptors`: what ListPodSandboxMetrics tells.

`Cgroup.read` reads the few files that the kubelet's decisions are made by; this reads about 25, for people, every 10 to 30 s.
What the node doesn't count (no PSI, no huge pages, an older kernel's cgroup) has no value, and isn't 0. Blocks, as `Cgroup`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from agent.linux import files
from agent.stats import descriptors as metrics
from agent.stats import parsers
from agent.stats.cgroup import Cgroup, GoneError
from agent.stats.descriptors import Descriptor

_USER_HZ = os.sysconf("SC_CLK_TCK")
_ULIMIT = b"Max open files "
_BLKIO = {b"Read": "rbytes", b"Write": "wbytes", b"Discard": "dbytes"}
_BLKIO_SERVICED = {b"Read": "rios", b"Write": "wios"}
_OF_DEVICE = {"rbytes": metrics.FS_READ_BYTES, "wbytes": metrics.FS_WRITTEN_BYTES, "rios": metrics.FS_READS, "wios": metrics.FS_WRITES}
_OPERATIONS = {"rbytes": "Read", "wbytes": "Write", "dbytes": "Discard"}
_PRESSURES = {
    "cpu.pressure": (metrics.PRESSURE_CPU_WAITING, metrics.PRESSURE_CPU_STALLED),
    "memory.pressure": (metrics.PRESSURE_MEMORY_WAITING, metrics.PRESSURE_MEMORY_STALLED),
    "io.pressure": (metrics.PRESSURE_IO_WAITING, metrics.PRESSURE_IO_STALLED),
}
_V1_MEMORY_STAT = {
    b"total_rss": metrics.MEMORY_RSS,
    b"total_cache": metrics.MEMORY_CACHE,
    b"total_mapped_file": metrics.MEMORY_MAPPED_FILE,
    b"total_active_file": metrics.MEMORY_ACTIVE_FILE,
    b"total_inactive_file": metrics.MEMORY_INACTIVE_FILE,
    b"total_swap": metrics.MEMORY_SWAP,
}
_V2_MEMORY_STAT = {
    b"anon": metrics.MEMORY_RSS,
    b"file": metrics.MEMORY_CACHE,
    b"file_mapped": metrics.MEMORY_MAPPED_FILE,
    b"active_file": metrics.MEMORY_ACTIVE_FILE,
    b"inactive_file": metrics.MEMORY_INACTIVE_FILE,
    b"kernel": metrics.MEMORY_KERNEL,
}
_V1_MEMORY_FILES = {
    "memory.max_usage_in_bytes": metrics.MEMORY_MAX_USAGE,
    "memory.kmem.usage_in_bytes": metrics.MEMORY_KERNEL,
    "memory.failcnt": metrics.MEMORY_FAILCNT,
}

Devices = dict[str, dict[str, int]]
"""Counters of each device, "8:0", by v2's names."""


class Value(NamedTuple):
    """One number. `labels` are the values for the descriptor's own labels, in their order."""

    metric: Descriptor
    number: int
    labels: tuple[str, ...] = ()


class Subject(NamedTuple):
    """Whose readout: a container's cgroup, and its first process."""

    cgroup: Cgroup
    pid: int


class Readout:
    """Reads subjects. `proc` and `sys` are other places in tests only."""

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = proc
        self._sys = sys

    def read(self, subject: Subject) -> list[Value] | None:
        """All values; None when the cgroup is gone, also if it goes while it is read. Raises OSError for what no kernel should answer."""
        try:
            read = self._v1 if subject.cgroup.v1 else self._v2
            return [*read(subject.cgroup), *self._processes(subject)]
        except GoneError:
            return None

    def filesystem(self, directory: str) -> list[Value]:
        """Size and inodes of the file system that `directory` is on. Raises OSError."""
        found, device = os.statvfs(directory), os.stat(directory).st_dev
        labels = (self.device(f"{os.major(device)}:{os.minor(device)}"),)
        values = [Value(metrics.FS_LIMIT, found.f_blocks * found.f_frsize, labels)]
        if found.f_files:  # btrfs counts none
            values += [Value(metrics.FS_INODES, found.f_files, labels), Value(metrics.FS_INODES_FREE, found.f_ffree, labels)]
        return values

    def device(self, numbers: str) -> str:
        """The name of block device `numbers`, such as "8:0", below /dev; the numbers themselves for one without a name."""
        try:
            return f"/dev/{os.path.basename(os.readlink(f'{self._sys}/dev/block/{numbers}'))}"
        except OSError:
            return numbers

    def _v1(self, cgroup: Cgroup) -> Iterator[Value]:
        if (usage := parsers.number(cgroup.file("cpuacct", "cpuacct.usage"))) is not None:
            yield Value(metrics.CPU_USAGE, usage // 10**9, ("total",))
        times = parsers.flat(cgroup.file("cpuacct", "cpuacct.stat") or b"")
        yield from _some(times, {b"user": metrics.CPU_USER, b"system": metrics.CPU_SYSTEM}, divisor=_USER_HZ)
        if parsers.number(cgroup.file("cpu", "cpu.cfs_quota_us")) is not None:
            yield from _throttling(parsers.flat(cgroup.file("cpu", "cpu.stat") or b""), b"throttled_time", 10**9)
        if (used := parsers.number(cgroup.file("memory", "memory.usage_in_bytes"))) is not None:
            stat = parsers.flat(cgroup.file("memory", "memory.stat") or b"")
            yield from _memory(used, parsers.value(stat, b"total_inactive_file"))
            yield from _some(stat, _V1_MEMORY_STAT)
            yield from _faults(stat, {"container": b"", "hierarchy": b"total_"})
            for name, metric in _V1_MEMORY_FILES.items():
                yield from _one(metric, cgroup.file("memory", name))
            yield from _some(parsers.flat(cgroup.file("memory", "memory.oom_control") or b""), {b"oom_kill": metrics.OOM_EVENTS})
        for size in self._page_sizes:
            yield from _one(metrics.HUGETLB_USAGE, cgroup.file("hugetlb", f"hugetlb.{size}.usage_in_bytes"), size)
            yield from _one(metrics.HUGETLB_MAX_USAGE, cgroup.file("hugetlb", f"hugetlb.{size}.max_usage_in_bytes"), size)
        devices: Devices = {}
        _add_blkio(devices, cgroup.file("blkio", "blkio.throttle.io_service_bytes_recursive"), _BLKIO)
        _add_blkio(devices, cgroup.file("blkio", "blkio.throttle.io_serviced_recursive"), _BLKIO_SERVICED)
        yield from self._devices(devices)
        yield from _threads(cgroup.file("pids", "pids.current"), cgroup.file("pids", "pids.max"))

    def _v2(self, cgroup: Cgroup) -> Iterator[Value]:
        cpu = parsers.flat(cgroup.unified("cpu.stat") or b"")
        if b"usage_usec" in cpu:
            yield Value(metrics.CPU_USAGE, parsers.value(cpu, b"usage_usec") // 10**6, ("total",))
        yield from _some(cpu, {b"user_usec": metrics.CPU_USER, b"system_usec": metrics.CPU_SYSTEM}, divisor=10**6)
        if not (cgroup.unified("cpu.max") or b"max").startswith(b"max"):
            yield from _throttling(cpu, b"throttled_usec", 10**6)
        if (used := parsers.number(cgroup.unified("memory.current"))) is not None:
            stat = parsers.flat(cgroup.unified("memory.stat") or b"")
            yield from _memory(used, parsers.value(stat, b"inactive_file"))
            yield from _some(stat, _V2_MEMORY_STAT)
            yield from _faults(stat, {"container": b"", "hierarchy": b""})  # v2 has no other counters than those of the hierarchy
            yield from _one(metrics.MEMORY_MAX_USAGE, cgroup.unified("memory.peak"))
            yield from _one(metrics.MEMORY_SWAP, cgroup.unified("memory.swap.current"))
            events = parsers.flat(cgroup.unified("memory.events") or b"")
            yield from _some(events, {b"max": metrics.MEMORY_FAILCNT, b"oom_kill": metrics.OOM_EVENTS})
        for name, (some, full) in _PRESSURES.items():
            if (pressure := parsers.pressure(cgroup.unified(name))) is not None:
                yield Value(some, pressure.some.total // 10**9)
                if pressure.full is not None:
                    yield Value(full, pressure.full.total // 10**9)
        for size in self._page_sizes:
            yield from _one(metrics.HUGETLB_USAGE, cgroup.unified(f"hugetlb.{size}.current"), size)
        yield from self._devices(_io(cgroup.unified("io.stat")))
        yield from _threads(cgroup.unified("pids.current"), cgroup.unified("pids.max"))

    def _devices(self, devices: Devices) -> Iterator[Value]:
        for numbers, counters in devices.items():
            name = self.device(numbers)
            major, _, minor = numbers.partition(":")
            for key, count in counters.items():
                if key in _OF_DEVICE:
                    yield Value(_OF_DEVICE[key], count, (name,))
                if key in _OPERATIONS:
                    yield Value(metrics.BLKIO_USAGE, count, (name, major, minor, _OPERATIONS[key]))

    @cached_property
    def _page_sizes(self) -> list[str]:
        """The kernel's sizes of huge pages, as its cgroup files name them: "2MB", "1GB"."""
        try:
            names = os.listdir(f"{self._sys}/kernel/mm/hugepages")
        except OSError:
            return []
        return sorted(_size(int(name.removeprefix("hugepages-").removesuffix("kB"))) for name in names)

    def _processes(self, subject: Subject) -> Iterator[Value]:
        """Of processes that end meanwhile nothing is counted; what we may not look at has no value."""
        pids = subject.cgroup.processes()
        if pids is None:
            return
        yield Value(metrics.PROCESSES, len(pids))
        descriptors = sockets = 0
        try:
            for pid in pids:
                opened, of_them_sockets = self._descriptors(pid)
                descriptors += opened
                sockets += of_them_sockets
        except PermissionError:
            pass
        else:
            yield Value(metrics.FILE_DESCRIPTORS, descriptors)
            yield Value(metrics.SOCKETS, sockets)
        if subject.pid in pids and (limit := self._open_files_limit(subject.pid)) is not None:
            yield Value(metrics.ULIMITS_SOFT, limit, ("max_open_files",))

    def _descriptors(self, pid: int) -> tuple[int, int]:
        try:
            directory = os.open(f"{self._proc}/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            return 0, 0
        try:
            names = os.listdir(directory)
            return len(names), sum(_is_socket(name, directory) for name in names)
        except (FileNotFoundError, ProcessLookupError):
            return 0, 0
        finally:
            os.close(directory)

    def _open_files_limit(self, pid: int) -> int | None:
        try:
            lines = files.read(f"{self._proc}/{pid}/limits").splitlines()
        except OSError:
            return None
        soft = next((line.removeprefix(_ULIMIT).split()[0] for line in lines if line.startswith(_ULIMIT)), None)
        return parsers.number(soft)


def _is_socket(name: str, directory: int) -> bool:
    try:
        return os.readlink(name, dir_fd=directory).startswith("socket:")
    except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
        return False


def _one(metric: Descriptor, data: bytes | None, *labels: str) -> Iterator[Value]:
    if (number := parsers.number(data)) is not None:
        yield Value(metric, number, labels)


def _some(stat: Mapping[bytes, bytes], wanted: Mapping[bytes, Descriptor], *, divisor: int = 1) -> Iterator[Value]:
    for key, metric in wanted.items():
        if key in stat:
            yield Value(metric, parsers.value(stat, key) // divisor)


def _throttling(stat: Mapping[bytes, bytes], throttled: bytes, second: int) -> Iterator[Value]:
    """Of a cgroup with a quota: without one, nothing is ever held back."""
    yield from _some(stat, {b"nr_periods": metrics.CFS_PERIODS, b"nr_throttled": metrics.CFS_THROTTLED_PERIODS})
    yield from _some(stat, {throttled: metrics.CFS_THROTTLED}, divisor=second)


def _memory(used: int, inactive_file: int) -> Iterator[Value]:
    yield Value(metrics.MEMORY_USAGE, used)
    yield Value(metrics.MEMORY_WORKING_SET, max(0, used - inactive_file))


def _faults(stat: Mapping[bytes, bytes], prefixes: Mapping[str, bytes]) -> Iterator[Value]:
    for scope, prefix in prefixes.items():
        for kind in ("pgfault", "pgmajfault"):
            key = prefix + kind.encode()
            if key in stat:
                yield Value(metrics.MEMORY_FAILURES, parsers.value(stat, key), (kind, scope))


def _threads(current: bytes | None, limit: bytes | None) -> Iterator[Value]:
    yield from _one(metrics.THREADS, current)
    if limit is not None:
        yield Value(metrics.THREADS_MAX, parsers.number(limit) or 0)


def _io(data: bytes | None) -> Devices:
    """v2's io.stat: `8:0 rbytes=1 wbytes=2 ...`. Some kernels leave the line of an idle device without counters, or without its end."""
    devices: Devices = {}
    counters: dict[str, int] = {}
    for word in (data or b"").decode(errors="replace").split():
        key, equals, count = word.partition("=")
        if not equals:
            counters = devices[key] = {}
        elif count.isdecimal():
            counters[key] = int(count)
    return devices


def _add_blkio(devices: Devices, data: bytes | None, names: Mapping[bytes, str]) -> None:
    """v1's blkio files: `8:0 Read 4096`, and a last line `Total 4096`."""
    for line in (data or b"").splitlines():
        match line.split():
            case [numbers, operation, count] if operation in names and count.isdigit():
                devices.setdefault(numbers.decode(), {})[names[operation]] = int(count)


def _size(kibibytes: int) -> str:
    for unit in ("KB", "MB"):
        if kibibytes < 1024:
            return f"{kibibytes}{unit}"
        kibibytes //= 1024
    return f"{kibibytes}GB"
