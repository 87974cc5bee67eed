"""The owner of tasks. Whoever starts background work has a `Supervisor`, and ends it with `stop()`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from agent import log

T = TypeVar("T")
_log = log.get("aio")


class Supervisor:
    """Owns named tasks, in the order of their start.

    `start()` is for work that nobody awaits: its failure is logged with its name. `detached()` is for work that a caller
    awaits but must not be able to cut in two.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: dict[asyncio.Task[Any], None] = {}  # a dict, for its order: a set would end them at random

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` in a task of its own. Its failure is logged, never lost."""
        task = self._spawn(work, name)
        task.add_done_callback(_log_failure)
        return task

    def start_awaited(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` in a task of its own whose result is fetched with `join()`."""
        return self._spawn(work, name)

    async def join(self, task: asyncio.Task[T]) -> T:
        """Wait for a task that others may wait for too: a caller's cancellation ends the caller's waiting only."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    async def detached(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run `work` to its end even if the caller is cancelled, and return what it returned.

        A failure that nobody awaits any more is logged. Bound the work inside with `within(budget, ...)`.
        """
        return await self.join(self._spawn(work, name))

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=f"{self.name}: {name}")
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    async def stop(self, budget: float) -> None:
        """Let running tasks end for `budget` seconds, cancel what is left, and wait for it; stuck ones are named in the log.

        What they start when they are cancelled, to clean up beside them, is cancelled when one of them has ended.
        """
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=budget)
        cancelled: set[asyncio.Task[Any]] = set()
        while self._tasks:
            for task in reversed(list(self._tasks)):
                if task not in cancelled:
                    task.cancel()
                    cancelled.add(task)
            done, pending = await asyncio.wait(list(self._tasks), timeout=5, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                _log.warning("tasks don't end", owner=self.name, tasks=[task.get_name() for task in pending])

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r}: {len(self._tasks)} tasks>"


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("task failed", task=task.get_name(), error=str(error), exc_info=error)
