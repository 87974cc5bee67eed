"""Pods per second at a parallelism, and what a pod's shim and helpers weigh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

from agent.aio import together
from agent.bench.session import Session
from agent.bench.target import Pod, Target
from agent.errdefs import OrlopError

_BATCH = 3
"""Pods of a turn, in multiples of the parallelism."""

T = TypeVar("T")


async def measure(session: Session) -> None:
    await session.rounds("parallel", session.plan.turns, partial(_turn, session), tidy=True)


async def _turn(session: Session, target: Target) -> None:
    count, width = session.plan.parallel * _BATCH, session.plan.parallel
    before = await _memory(session, target)
    started = time.perf_counter()
    pods: list[Pod] = await at_a_time(width, target.start, [()] * count)
    target.add("starts", count / (time.perf_counter() - started))
    if (after := await _memory(session, target)) is not None and before is not None:
        target.add("pod_memory", (after - before) / count)
    started = time.perf_counter()
    await at_a_time(width, target.end, [(pod,) for pod in pods])
    target.add("ends", count / (time.perf_counter() - started))


async def _memory(session: Session, target: Target) -> float | None:
    try:
        memory = await target.stack.memory()
    except OrlopError as error:
        session.results.absent("pod_memory", target.name, str(error))
        return None
    return memory.daemon + memory.shims


async def at_a_time(width: int, work: Callable[..., Awaitable[T]], arguments: Iterable[tuple[object, ...]]) -> list[T]:
    """Await `work` of each of the arguments, `width` at a time and all to their ends; the results in order. Raises the first failure."""
    gate = asyncio.Semaphore(width)

    async def one(given: tuple[object, ...]) -> T:
        async with gate:
            return await work(*given)

    return await together(*(one(given) for given in arguments))
