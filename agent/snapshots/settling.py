"""Layers that are in use before the disk has them, and what makes that safe. Run by `agent.snapshots.snapshotter`.

To wait for the disk is most of the time that a large image takes, and nobody needs it: after a power cut no container is left that
stands on the layer, and the image is pulled again. So a layer's record says in which boot its files were written, until they
are known to be on disk; a record of another boot means a layer that may have holes, and is no layer (`layers.load_layers`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent import log
from agent.aio import Supervisor
from agent.linux import libc
from agent.linux.throwaway import in_own_thread

PAUSE = 40.0
"""Seconds from a layer's commit to the syncfs. The kernel writes by itself what is older than 30 s, at its own pace, so that not much is
left to do; earlier it would be a burst for the whole disk, which holds up the pull's other layers and all else."""
_log = log.get("snapshots")


class Settling:
    """`settled(chain_id)` is awaited for each layer that is on disk by now, and writes that down. `directory` is on that disk."""

    def __init__(self, directory: Path, settled: Callable[[str], Awaitable[None]]) -> None:
        self._directory = directory
        self._settled = settled
        self._waiting: dict[str, object] = {}  # with a token each: a layer may be deleted and come again while the disk is at it
        self._syncing = asyncio.Lock()
        self._running = False
        self._supervisor = Supervisor("settling")

    def add(self, chain_id: str) -> None:
        """A layer whose files are written, as far as the kernel knows."""
        self._waiting[chain_id] = object()
        if not self._running:
            self._running = True
            self._supervisor.start(self._run(), name="sync layers")

    def forget(self, chain_id: str) -> None:
        """A layer that is being deleted."""
        self._waiting.pop(chain_id, None)

    async def sync(self) -> None:
        """Return when all that was added is on disk. Raises OSError."""
        async with self._syncing:
            written = dict(self._waiting)
            if written:
                await in_own_thread(_sync, self._directory)  # for as long as the disk takes, which the daemon's end must not wait for
            for chain_id, token in written.items():
                if self._waiting.get(chain_id) is token:
                    await self._settled(chain_id)
                    if self._waiting.get(chain_id) is token:
                        self.forget(chain_id)

    async def close(self) -> None:
        """Wait for nothing: the next start goes on, if it is in the same boot."""
        await self._supervisor.stop(0)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(PAUSE)
                await self.sync()
        except OSError as error:
            _log.error("layers not synced to disk, the next one's commit tries again", layers=list(self._waiting), error=str(error))
        finally:
            self._running = False


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc.syncfs(descriptor)
    finally:
        os.close(descriptor)
