"""Work side by side, each to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


async def together(*work: Awaitable[Any]) -> list[Any]:
    """Await all side by side and return their results in order.

    Unlike a TaskGroup, a failure doesn't cancel the others: half a CNI ADD or half a shim start is harder to take back
    than a whole one. The first failure is raised after all have ended; further ones are added to it as notes. That one of them
    was cancelled is told only if nothing else went wrong: to the caller it would look like a cancellation of its own.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    failures.sort(key=lambda failure: isinstance(failure, asyncio.CancelledError))
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"also: {other}")
        raise failures[0]
    return results
