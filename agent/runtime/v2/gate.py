"""The gate of a sandbox: creates go through it, and stopping closes it.

A Create can't be cancelled, and a Shutdown beside one kills it half-way (decisions.md 1). So the shim is shut down only
behind a closed gate, when nobody is inside any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from agent.errdefs import FailedPrecondition


class Gate:
    """One per sandbox; a shim that replaces a dead one has the same."""

    def __init__(self, sandbox_id: str) -> None:
        self._sandbox_id = sandbox_id
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_open = True

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside, for the length of a create.

        Raises:
            FailedPrecondition: the gate is closed.
        """
        if not self.is_open:
            raise FailedPrecondition(f"sandbox {self._sandbox_id} is being stopped: nothing can be created in it any more")
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self.is_open = False

    async def wait_idle(self) -> None:
        """Return when nobody is inside."""
        await self._idle.wait()
