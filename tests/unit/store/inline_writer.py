"""A writer that has finished each write when `put` returns, for tests that must not depend on a thread's timing.

The write still runs on a thread of its own, as `Database` insists on, but the loop waits for it. `fence()` is a `kill -9`: what
comes after it is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from agent.errdefs import Unavailable
from agent.store.writer import Commit, Deliver, Write


class InlineWriter:
    def __init__(self, name: str, commit: Commit, deliver: Deliver) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._commit = commit
        self._deliver = deliver
        self._fenced = False

    def put(self, write: Write) -> None:
        if self._fenced:
            write.error = Unavailable("this incarnation is dead")
        else:
            self._executor.submit(self._commit, [write]).result()
        self._deliver([write])

    def fence(self) -> None:
        self._fenced = True

    async def stop(self, last: Callable[[], None]) -> None:
        self._executor.submit(last).result()
        self._executor.shutdown()
