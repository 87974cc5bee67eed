"""Waits with a named budget."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from agent.errdefs import DeadlineExceeded

T = TypeVar("T")


async def within(budget: float, awaitable: Awaitable[T], what: str) -> T:
    """Await, for `budget` seconds at the most.

    Raises:
        DeadlineExceeded: "`what` took longer than ... s". The awaitable was cancelled.
    """
    try:
        async with asyncio.timeout(budget) as timeout:
            return await awaitable
    except TimeoutError as error:
        if not timeout.expired():
            raise  # the awaitable's own: ETIMEDOUT of a connection, say
        raise DeadlineExceeded(f"{what} took longer than {budget:g} s") from error
