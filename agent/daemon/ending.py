"""The daemon ends in bounded time: what is under way gets DAEMON_STOP seconds, in all parts together.

Nothing has to be brought to its end: whatever is cut off, the next start finds in the ledger. Used by `serve` alone.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Awaitable, Callable

from agent import log, timeouts

_log = log.get("daemon")


class Ending:
    """The daemon's end; `begin` is the first that happens then."""

    def __init__(self) -> None:
        self._deadline = math.inf

    def begin(self) -> None:
        """From now on time runs. A second call changes nothing."""
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + timeouts.DAEMON_STOP
            _end_in_any_case()

    async def give(self, stop: Callable[[float], Awaitable[object]], most: float = math.inf) -> None:
        """Stop a part, by a function that takes the seconds that it may need: what the parts before it have left, `most` at the most."""
        self.begin()  # where the start failed half-way, nobody else did
        await stop(max(0.0, min(most, self._deadline - time.monotonic())))


def _end_in_any_case() -> None:
    """The interpreter waits for its threads, and one that is in a file system that hangs comes back never."""
    watchdog = threading.Timer(timeouts.DAEMON_KILL, _give_up)
    watchdog.daemon = True
    watchdog.start()


def _give_up() -> None:
    _log.error("something in the daemon doesn't end: left to the next start as after a crash", seconds=timeouts.DAEMON_KILL)
    os._exit(1)
