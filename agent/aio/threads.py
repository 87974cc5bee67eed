"""Blocking work off the event loop: the one place from which threads are used, so that a simulation can replace it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call that can block (files, mounts, SQLite, fork) in a worker thread.

    A cancelled caller stops waiting; the call itself runs to its end, so what it acquires must already be owned.
    """
    return await asyncio.to_thread(function, *args, **kwargs)
