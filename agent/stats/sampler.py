"""Reads many cgroups off the event loop.

A cgroup has one reader of a kind at a time: who asks while it is read gets that reading's answer. So a kernel that is slow to
answer for a cgroup, or a disk, costs one thread, however often the kubelet asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from agent import log, timeouts
from agent.aio import Supervisor, in_thread, together, within
from agent.errdefs import DeadlineExceeded
from agent.stats.cgroup import Cgroup
from agent.stats.readout import Readout, Subject, Value
from agent.stats.sample import Sample

_log = log.get("stats")

_PER_THREAD = 50
"""Cgroups that one thread reads in turn: about 2 ms of work, so that handing it to a thread costs little beside it."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Sampler:
    """Finds cgroups, and reads them; `stop()` waits for what is being read. `controllers` as `Cgroups.controllers()`."""

    def __init__(self, controllers: Mapping[str, Path]) -> None:
        self._controllers = controllers
        self._supervisor = Supervisor("stats")
        readout = Readout()
        self._samples: _Readers[Cgroup, Sample] = _Readers(self._supervisor, lambda cgroup: cgroup.read())
        self._readouts = _Readers(self._supervisor, readout.read)
        self._filesystems = _Readers(self._supervisor, readout.filesystem)

    def of_process(self, membership: Mapping[str, str]) -> Cgroup:
        """As `Cgroup.of_process`."""
        return Cgroup.of_process(membership, self._controllers)

    def at(self, path: str) -> Cgroup:
        """As `Cgroup.at`."""
        return Cgroup.at(path, self._controllers)

    async def read(self, cgroups: Sequence[Cgroup]) -> list[Sample | None]:
        """A sample of each, none older than this call but those whose reading was under way. None: it is gone, or doesn't answer."""
        return await self._samples.read(cgroups)

    async def read_out(self, subjects: Sequence[Subject]) -> list[list[Value] | None]:
        """All metrics of each; as `read`."""
        return await self._readouts.read(subjects)

    async def filesystem(self, directory: str) -> list[Value]:
        """As `Readout.filesystem`; nothing when it can't be asked, or doesn't answer."""
        [values] = await self._filesystems.read([directory])
        return values or []

    async def oom_kills(self, cgroup: Cgroup) -> int | None:
        """As `Cgroup.oom_kills`; 0 when the kernel doesn't answer."""
        try:
            return await within(timeouts.STATS, in_thread(cgroup.oom_kills), "asking whether a container was out of memory")
        except (DeadlineExceeded, OSError) as error:
            _log.warning("OOM kills not known", error=str(error))
            return 0

    async def stop(self, budget: float) -> None:
        """Wait for readings under way, `budget` seconds at the most."""
        await self._supervisor.stop(budget)


class _Readers(Generic[K, V]):
    """Readings of one kind: `look` reads one object, in a thread."""

    def __init__(self, supervisor: Supervisor, look: Callable[[K], V | None]) -> None:
        self._supervisor = supervisor
        self._look = look
        self._reading: dict[K, asyncio.Task[dict[K, V | None]]] = {}

    async def read(self, wanted: Sequence[K]) -> list[V | None]:
        todo = [key for key in dict.fromkeys(wanted) if key not in self._reading]
        for start in range(0, len(todo), _PER_THREAD):
            batch = todo[start : start + _PER_THREAD]
            task = self._supervisor.start_awaited(self._read(batch), name=f"{len(batch)} readings")
            self._reading.update(dict.fromkeys(batch, task))
        tasks = [self._reading[key] for key in wanted]
        distinct = list(dict.fromkeys(tasks))
        answers = dict(zip(distinct, await together(*(self._answer(task) for task in distinct)), strict=True))
        return [answers[task].get(key) for key, task in zip(wanted, tasks, strict=True)]

    async def _read(self, batch: Sequence[K]) -> dict[K, V | None]:
        try:
            return await in_thread(self._read_each, batch)
        finally:
            for key in batch:
                del self._reading[key]

    async def _answer(self, task: asyncio.Task[dict[K, V | None]]) -> dict[K, V | None]:
        try:
            return await within(timeouts.STATS, self._supervisor.join(task), "reading what some containers use")
        except DeadlineExceeded as error:
            _log.warning("no statistics", error=str(error))
            return {}

    def _read_each(self, batch: Sequence[K]) -> dict[K, V | None]:
        readings: dict[K, V | None] = {}
        for key in batch:
            try:
                readings[key] = self._look(key)
            except OSError as error:
                _log.warning("no statistics", error=str(error))
                readings[key] = None
        return readings
