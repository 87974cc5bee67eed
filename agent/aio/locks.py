"""Locks by key: one per sandbox, container or shim id, made on demand and gone when nobody holds or awaits it.

Order everywhere: sandbox, then container, then shim (decisions.md 21). No lock is held during a grace period.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class KeyedLock:
    """`async with locks.hold(key)`: first come, first served per key."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)

    async def passed(self, key: str) -> None:
        """Return when whoever holds or awaits the key's lock now is done with it."""
        async with self.hold(key):
            pass

    def locked(self, key: str) -> bool:
        """Whether somebody holds or awaits the key's lock."""
        return key in self._locks
