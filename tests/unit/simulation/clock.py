"""Virtual time: an event loop whose clock jumps when nothing is to be done, on which threads are inline, and everything random is seeded.

`simulated(seed)` is one world of time. Within it `time`, `secrets`, `uuid` and `random` answer from the seed, so that a schedule runs in
the same way each time. A call in a thread takes a moment (of virtual time), goes on when its caller is cancelled, and never happens
when the incarnation that asked for it (`Life`) has died before that: what a `kill -9` leaves undone stays undone.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import selectors
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from functools import partial
from typing import Any

EPOCH = 1_800_000_000.0
"""Unix seconds at the beginning of every world."""
_BOOTED = 1_000.0
_MOMENT = 0.004
"""Seconds that a call in a thread takes at the most."""


class DeadlockError(Exception):
    """Everybody waits, and nothing is going to happen any more."""


class Life:
    """One incarnation of the daemon, as the world sees it: `dead` from the moment on in which it is killed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.dead = False
        self.ending = False
        """It stops in order: what it is doing may be cut off."""
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.readers: dict[int, None] = {}
        """Descriptors that it polls; a kernel closes them with the process."""

    def check(self) -> None:
        """For everything that acts on the node. Raises CancelledError: it is dead, and can do nothing."""
        if self.dead:
            raise asyncio.CancelledError

    def __repr__(self) -> str:
        return f"<Life {self.number}>"


CURRENT: ContextVar[Life | None] = ContextVar("life", default=None)
"""Whose code runs: None is the world itself."""


class _Selector(selectors.PollSelector):
    """Advances the clock instead of waiting. Real descriptors, of FIFOs, are looked at when nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _BOOTED

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return []
        if len(self.get_map()) > 1 and (ready := super().select(0)):  # one is the loop's own
            return ready
        if timeout is None:
            raise DeadlockError("everybody waits, and nobody will ever go on")
        self.now += timeout
        return []


class Loop(asyncio.SelectorEventLoop):
    """The loop of one world."""

    def __init__(self, seed: object) -> None:
        self.clock = _Selector()
        self.random = random.Random(f"world {seed}")
        super().__init__(self.clock)
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # typeshed leaves out the context
        self.slow_calls = 0.3
        """How many of the calls in threads take longer than no time at all."""

    def time(self) -> float:
        return self.clock.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        life = CURRENT.get()
        if self.random.random() < self.slow_calls:
            self.call_later(self.random.random() * _MOMENT, _call, future, life, func, args)
        else:
            self.call_soon(_call, future, life, func, args)
        return future

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        if (life := CURRENT.get()) is not None:
            life.readers[fd] = None
        super().add_reader(fd, callback, *args)

    def remove_reader(self, fd: Any) -> bool:
        if (life := CURRENT.get()) is not None:
            life.readers.pop(fd, None)
        return super().remove_reader(fd)

    def start(self, work: Coroutine[Any, Any, Any], context: Context) -> asyncio.Task[Any]:
        """A task in somebody else's context."""
        return self.create_task(work, context=context)


def _call(future: asyncio.Future[Any], life: Life | None, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if life is not None and life.dead:
        future.cancel()
        return
    try:
        result = func(*args)
    except BaseException as error:
        if not future.done():
            future.set_exception(error)
        return
    if not future.done():
        future.set_result(result)


def _make_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], context: Context | None = None) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
    life = CURRENT.get() if context is None else context.get(CURRENT)
    if life is not None:
        life.tasks[task] = None
        task.add_done_callback(life.tasks.pop)
    return task


@contextmanager
def simulated(seed: object) -> Iterator[Loop]:
    """A world of its own. Everything of it ends with it."""
    loop = Loop(seed)
    source = random.Random(f"names {seed}")
    state = random.getstate()
    random.seed(f"jitter {seed}")

    def now() -> float:
        return EPOCH + loop.clock.now

    def sleep(seconds: float) -> None:
        loop.clock.now += seconds

    async def to_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return await loop.run_in_executor(None, partial(function, **kwargs) if kwargs else function, *args)

    replaced: list[tuple[Any, str, Any]] = [
        (asyncio, "to_thread", to_thread),
        (time, "time", now),
        (time, "time_ns", lambda: round(now() * 1e9)),
        (time, "monotonic", lambda: loop.clock.now),
        (time, "sleep", sleep),
        (secrets, "token_hex", lambda size=32: f"{source.getrandbits(8 * size):0{2 * size}x}"),
        (uuid, "uuid4", lambda: uuid.UUID(int=source.getrandbits(128))),
    ]
    originals = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield loop
    finally:
        for module, name, value in originals:
            setattr(module, name, value)
        random.setstate(state)
        loop.close()


def close_descriptors(life: Life, loop: Loop) -> None:
    """What a kernel does when a process ends, for those that nobody had the time to close."""
    for descriptor in list(life.readers):
        loop.remove_reader(descriptor)
        os.close(descriptor)
    life.readers.clear()
