"""The life of `orlop watch`: an address that is its own, ready, audits, the end. Called by `agent.cli.watch`, which says where to look.

It has no state: whatever ends it, the next one finds the same.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack

from agent import log, metrics
from agent.aio import Supervisor
from agent.errdefs import Unavailable
from agent.web import MetricsServer

_log = log.get("watch")

JITTER = 0.1
"""Part of the interval: audits don't keep step with what else the node does once a minute."""

Audits = Callable[[Iterable[float]], Coroutine[None, None, None]]
"""`agent.leaks.watch`, told where to look; it gets the pauses before each audit, in seconds."""


async def run(address: str, interval: float, audits: Audits, *, notify: Callable[[str], None], at_end: Callable[[], None]) -> None:
    """Audit about every `interval` seconds, and serve what is found on `address` ("" for nowhere), until SIGTERM or SIGINT.

    `notify` is sd_notify(3)'s. `at_end` is called when the end begins, and has to see to it that it comes: an audit may be in a file
    system that hangs, and the interpreter waits for its thread.

    Raises:
        Unavailable: the address is taken.
        InvalidArgument: it is none.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        server = MetricsServer(address, metrics.of_audits)
        try:
            await server.start()
        except Unavailable as error:
            error.add_note("an `orlop serve` audits the node itself, and one `orlop watch` is enough; --address names another address")
            raise
        stack.push_async_callback(server.stop)
        supervisor = Supervisor("watch")
        stack.push_async_callback(supervisor.stop, 0)
        stack.callback(at_end)
        watching = supervisor.start_awaited(audits(pauses(interval)), name="audits")
        watching.add_done_callback(lambda _: stopping.set())
        notify("READY=1")
        _log.info("watching", address=address, interval=interval)
        await stopping.wait()
        notify("STOPPING=1")
        if watching.done():
            watching.result()
        _log.info("stopping")


def pauses(interval: float) -> Iterator[float]:
    """None before the first audit."""
    yield 0.0
    while True:
        yield interval * random.uniform(1 - JITTER, 1 + JITTER)
