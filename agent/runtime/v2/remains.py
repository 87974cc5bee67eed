"""What there still is of a container on the node. `cleanup` looks here, since a `shim delete` that says it worked proves nothing."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from agent import metrics, timeouts
from agent.aio import within
from agent.linux.processes import Identity
from agent.linux.procfs import init_stage
from agent.runtime.v2.bundle import Bundle
from agent.runtime.v2.engine import Engine
from agent.runtime.v2.node import Cgroups, Mounts, Processes
from agent.runtime.v2.records import TaskRecord


@dataclass(frozen=True)
class Remains:
    """The findings of one look."""

    pids: frozenset[int]
    """The init, and who is in the container's cgroup."""
    engine_state: bool
    mounts: bool

    @property
    def to_reap(self) -> bool:
        """Whether something is left that unmounting and removing won't end."""
        return bool(self.pids) or self.engine_state

    def __bool__(self) -> bool:
        return self.to_reap or self.mounts


async def look(
    record: TaskRecord, bundle: Bundle, init: Identity | None, *, processes: Processes, cgroups: Cgroups, mounts: Mounts, engine: Engine
) -> Remains:
    """Look at all four places: the engine's state, the init, the cgroup, the mounts."""
    pids = set(await cgroups.processes(record.cgroup)) if record.cgroup else set()
    if init is not None and (process := await processes.open(init.pid, init.start_time)) is not None:
        process.close()
        pids.add(init.pid)
    return Remains(
        pids=frozenset(pids),
        engine_state=await engine.has_state(record),
        mounts=bool(await mounts.at_or_below(bundle.path)),
    )


async def kill(record: TaskRecord, init: Identity | None, *, processes: Processes, cgroups: Cgroups) -> None:
    """SIGKILL all of the container's processes by cgroup, and its init by pidfd, and see them end. Counts each `runc init`.

    Raises:
        DeadlineExceeded: names those that don't end.
    """
    stages: list[str] = []
    if record.cgroup:
        rows = await processes.table()
        inits = [row for row in rows if row.comm.startswith("runc:[") and record.cgroup in row.cgroups.values()]
        stages = [init_stage(row.comm) for row in inits]
        for stage in stages:
            metrics.runc_init_found.labels(stage).inc()
        await cgroups.kill(record.cgroup, timeouts.EXIT_AFTER_SHIM_KILL)
    if init is not None and (process := await processes.open(init.pid, init.start_time)) is not None:
        try:
            process.kill(signal.SIGKILL)
            await within(timeouts.EXIT_AFTER_SHIM_KILL, process.wait(), f"the end of process {init.pid}, the init of {record.id}")
        finally:
            process.close()
    for stage in stages:
        metrics.runc_init_reaped.labels(stage).inc()
