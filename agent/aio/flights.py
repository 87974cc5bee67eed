"""Work that several callers may want at once: done once, and for as long as one of them waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.aio.supervisor import Supervisor
from agent.errdefs import Unavailable

T = TypeVar("T")


@dataclass
class _Flight:
    task: asyncio.Task[Any]
    waiting: int = 0


class Flights:
    """`await flights.join(key, work)`: the first caller starts the work, later ones get its result too."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._flights: dict[Hashable, _Flight] = {}
        self._stopped = False

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], *, name: str) -> T:
        """Wait for the work that `key` names; equal keys must mean equal work.

        A cancelled caller stops waiting. The last one ends the work, and waits until it has cleaned up behind itself.

        Raises:
            Unavailable: `stop` was called.
        """
        if self._stopped:
            raise Unavailable(f"{name} is not begun: the agent stops")
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(self._supervisor.start_awaited(work(), name=name))
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        flight.waiting += 1
        try:
            result: T = await self._supervisor.join(flight.task)
            return result
        except asyncio.CancelledError:
            if flight.task.cancelled() and not _being_cancelled():
                raise Unavailable(f"{name} is given up: the agent stops") from None
            if flight.waiting == 1 and not flight.task.done():
                self._forget(key, flight)  # who comes now starts anew
                flight.task.cancel()
                await asyncio.wait([flight.task])
            raise
        finally:
            flight.waiting -= 1

    async def stop(self) -> None:
        """End all work, and take no more."""
        self._stopped = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, key: Hashable, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
