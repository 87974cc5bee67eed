"""Reads many cgroups off the event loop.

A cgroup has one reader at a time: who asks while it is read gets that reading's sample. So a kernel that is slow to answer for
a cgroup costs one thread, however often the kubelet asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent import log, timeouts
from agent.aio import Supervisor, in_thread, together, within
from agent.errdefs import DeadlineExceeded
from agent.stats.cgroup import Cgroup
from agent.stats.sample import Sample

_log = log.get("stats")

_PER_THREAD = 50
"""Cgroups that one thread reads in turn: about 2 ms of work, so that handing it to a thread costs little beside it."""

Readings = dict[Cgroup, Sample | None]


class Sampler:
    """Finds cgroups, and reads them; `stop()` waits for what is being read. `controllers` as `Cgroups.controllers()`."""

    def __init__(self, controllers: Mapping[str, Path]) -> None:
        self._controllers = controllers
        self._supervisor = Supervisor("stats")
        self._reading: dict[Cgroup, asyncio.Task[Readings]] = {}

    def of_process(self, membership: Mapping[str, str]) -> Cgroup:
        """As `Cgroup.of_process`."""
        return Cgroup.of_process(membership, self._controllers)

    def at(self, path: str) -> Cgroup:
        """As `Cgroup.at`."""
        return Cgroup.at(path, self._controllers)

    async def read(self, cgroups: Sequence[Cgroup]) -> list[Sample | None]:
        """A sample of each, none older than this call but those whose reading was under way. None: it is gone, or doesn't answer."""
        todo = [cgroup for cgroup in dict.fromkeys(cgroups) if cgroup not in self._reading]
        for start in range(0, len(todo), _PER_THREAD):
            batch = todo[start : start + _PER_THREAD]
            task = self._supervisor.start_awaited(self._read(batch), name=f"{len(batch)} cgroups")
            self._reading.update(dict.fromkeys(batch, task))
        tasks = [self._reading[cgroup] for cgroup in cgroups]
        distinct = list(dict.fromkeys(tasks))
        answers = dict(zip(distinct, await together(*(self._answer(task) for task in distinct)), strict=True))
        return [answers[task].get(cgroup) for cgroup, task in zip(cgroups, tasks, strict=True)]

    async def oom_kills(self, cgroup: Cgroup) -> int:
        """As `Cgroup.oom_kills`; 0 also when the kernel doesn't answer."""
        try:
            return await within(timeouts.STATS, in_thread(cgroup.oom_kills), "asking whether a container was out of memory")
        except (DeadlineExceeded, OSError) as error:
            _log.warning("OOM kills not known", error=str(error))
            return 0

    async def stop(self, budget: float) -> None:
        """Wait for readings under way, `budget` seconds at the most."""
        await self._supervisor.stop(budget)

    async def _read(self, batch: Sequence[Cgroup]) -> Readings:
        try:
            return await in_thread(_read, batch)
        finally:
            for cgroup in batch:
                del self._reading[cgroup]

    async def _answer(self, task: asyncio.Task[Readings]) -> Readings:
        try:
            return await within(timeouts.STATS, self._supervisor.join(task), "reading the files of some cgroups")
        except DeadlineExceeded as error:
            _log.warning("no statistics", error=str(error))
            return {}


def _read(batch: Sequence[Cgroup]) -> Readings:
    readings: Readings = {}
    for cgroup in batch:
        try:
            readings[cgroup] = cgroup.read()
        except OSError as error:
            _log.warning("a cgroup can't be read", error=str(error))
            readings[cgroup] = None
    return readings
