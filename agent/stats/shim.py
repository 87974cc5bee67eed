"""A shim's answer to Task.Stats, for containers whose cgroup is in a sandbox of their own (Kata, gVisor).

It is in containerd's messages of cgroup v1 or v2, whichever the guest has; working set and the like follow the same rules as
`cgroup`.
"""

from __future__ import annotations

import time

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from agent.api.cgroup1.stats import metrics_pb2 as v1
from agent.api.cgroup2.stats import metrics_pb2 as v2
from agent.errdefs import Internal
from agent.stats.parsers import UNLIMITED
from agent.stats.sample import Memory, Pressure, Sample, Stall, Swap


def sample(answer: Any) -> Sample:
    """The sample in a StatsResponse, as of now: the message has no time.

    Raises:
        Internal: it is in no form that is known here.
    """
    try:
        match answer.type_url.rsplit("/", 1)[-1]:
            case v1.Metrics.DESCRIPTOR.full_name:
                return _of_v1(v1.Metrics.FromString(answer.value))
            case v2.Metrics.DESCRIPTOR.full_name:
                return _of_v2(v2.Metrics.FromString(answer.value))
            case name:
                raise Internal(f"a shim answered Stats with {name!r}, which is unknown here")
    except DecodeError as error:
        raise Internal(f"a shim answered Stats with a damaged {answer.type_url}: {error}") from error


def _of_v1(metrics: v1.Metrics) -> Sample:
    stat = metrics.memory
    memory = swap = None
    if stat.HasField("usage"):
        memory = Memory.of(
            stat.usage.usage,
            inactive_file=stat.total_inactive_file,
            rss=stat.total_rss,
            page_faults=stat.total_pg_fault,
            major_page_faults=stat.total_pg_maj_fault,
            limit=_limit(stat.usage.limit),
        )
    if stat.HasField("swap"):  # v1 counts memory and swap together
        limits = _limit(stat.usage.limit), _limit(stat.swap.limit)
        allowed = None if limits[0] is None or limits[1] is None else limits[1] - limits[0]
        swap = Swap.of(max(0, stat.swap.usage - stat.usage.usage), allowed)
    return Sample(
        time.time_ns(),
        time.monotonic_ns(),
        cpu=metrics.cpu.usage.total if metrics.cpu.HasField("usage") else None,
        memory=memory,
        swap=swap,
        tasks=metrics.pids.current if metrics.HasField("pids") else None,
    )


def _of_v2(metrics: v2.Metrics) -> Sample:
    stat = metrics.memory
    memory = swap = None
    if metrics.HasField("memory"):
        memory = Memory.of(
            stat.usage,
            inactive_file=stat.inactive_file,
            rss=stat.anon,
            page_faults=stat.pgfault,
            major_page_faults=stat.pgmajfault,
            limit=_limit(stat.usage_limit),
        )
        swap = Swap.of(stat.swap_usage, _limit(stat.swap_limit))
    return Sample(
        time.time_ns(),
        time.monotonic_ns(),
        cpu=metrics.cpu.usage_usec * 1000 if metrics.HasField("cpu") else None,
        memory=memory,
        swap=swap,
        tasks=metrics.pids.current if metrics.HasField("pids") else None,
        cpu_pressure=_pressure(metrics.cpu),
        memory_pressure=_pressure(stat),
        io_pressure=_pressure(metrics.io),
    )


def _pressure(part: v2.CPUStat | v2.MemoryStat | v2.IOStat) -> Pressure | None:
    if not part.HasField("psi"):
        return None
    full = _stall(part.psi.full) if part.psi.HasField("full") else None
    return Pressure(_stall(part.psi.some), full)


def _stall(data: v2.PSIData) -> Stall:
    return Stall(data.avg10, data.avg60, data.avg300, data.total * 1000)


def _limit(value: int) -> int | None:
    """0 is a number that the guest doesn't tell: nothing could run with it."""
    return value if 0 < value < UNLIMITED else None
