"""Virtual time: an event loop whose clock jumps when nothing is to be done, on which threads are inline, and everything random is seeded.

`simulated(seed)` is one world of time. Within it `time`, `secrets`, `uuid` and `random` answer from the seed, so that a schedule runs in
the same way each time. A call in a thread takes a moment (of virtual time), goes on when its caller is cancelled, and never happens
when the incarnation that asked for it (`Life`) has died before that: what a `kill -9` leaves undone stays undone.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
import select
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from heapq import heappop, heappush
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
        self.readers: dict[int, None] = {}
        """Descriptors that it polls; a kernel closes them with the process."""
        self._tasks: list[asyncio.Task[Any]] = []
        self._room = 256

    def began(self, task: asyncio.Task[Any]) -> None:
        self._tasks.append(task)
        if len(self._tasks) > self._room:
            self._room = 2 * len(self.tasks()) + 256

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Its tasks that have not ended, the oldest first."""
        self._tasks = [task for task in self._tasks if not task.done()]
        return self._tasks

    def check(self) -> None:
        """For everything that acts on the node. Raises CancelledError: it is dead, and can do nothing."""
        if self.dead:
            raise asyncio.CancelledError

    def __repr__(self) -> str:
        return f"<Life {self.number}>"


CURRENT: ContextVar[Life | None] = ContextVar("life", default=None)
"""Whose code runs: None is the world itself."""


class Handle(list[Any]):
    """`asyncio.Handle`, as callback, arguments and context: thousands are made in each schedule."""

    __slots__ = ()

    def cancel(self) -> None:
        self[0] = None


class Loop(asyncio.BaseEventLoop):
    """The loop of one world.

    It does what asyncio's does, and less of it, since most of the time goes here: nothing is checked, and timers are ordered by their
    time and then by their age. Real descriptors, those of FIFOs, are looked at when nothing else is to be done.
    """

    def __init__(self, seed: object) -> None:
        self.now = _BOOTED
        self.random = random.Random(f"world {seed}")
        self.slow_calls = 0.3
        """How many of the calls in threads take longer than no time at all."""
        self._poll = select.poll()
        self._readers: dict[int, Handle] = {}
        self._due: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = itertools.count()
        super().__init__()
        self.get_debug = bool  # type: ignore[method-assign]  # False. Each future and task asks for it, and this is no call of Python's

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle((callback, args, context or copy_context()))
        self._due.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle((callback, args, context or copy_context()))
        heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle((callback, args, context or copy_context()))
        heappush(self._timers, (self.now + delay, next(self._numbers), handle))
        return handle

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)  # type: ignore[arg-type]
        life = CURRENT.get() if context is None else context.get(CURRENT)
        if life is not None:
            life.began(task)
        return task

    def _run_once(self) -> None:
        """One turn, of all that is due. asyncio's own loop calls this until it is told to stop."""
        due, timers = self._due, self._timers
        if not due:
            self._pass_time()
        now = self.now
        while timers and timers[0][0] <= now:
            due.append(heappop(timers)[2])
        for _ in range(len(due)):
            callback, args, context = due.popleft()
            if callback is None:
                continue
            try:
                context.run(callback, *args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"exception in {callback}", "exception": error})

    def _pass_time(self) -> None:
        if self._readers:
            for descriptor, _ in self._poll.poll(0):
                self._due.append(self._readers[descriptor])
            if self._due:
                return
        timers = self._timers
        while timers and timers[0][2][0] is None:
            heappop(timers)
        if not timers:
            raise DeadlockError("everybody waits, and nobody will ever go on")
        if timers[0][0] > self.now:
            self.now = timers[0][0]

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
        self._readers[fd] = Handle((callback, args, copy_context()))
        self._poll.register(fd, select.POLLIN)

    def remove_reader(self, fd: Any) -> bool:
        if (life := CURRENT.get()) is not None:
            life.readers.pop(fd, None)
        handle = self._readers.pop(fd, None)
        if handle is None:
            return False
        handle.cancel()
        self._poll.unregister(fd)
        return True

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


@contextmanager
def simulated(seed: object) -> Iterator[Loop]:
    """A world of its own. Everything of it ends with it."""
    loop = Loop(seed)
    source = random.Random(f"names {seed}")
    state = random.getstate()
    random.seed(f"jitter {seed}")

    def now() -> float:
        return EPOCH + loop.now

    def sleep(seconds: float) -> None:
        loop.now += seconds

    async def to_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return await loop.run_in_executor(None, partial(function, **kwargs) if kwargs else function, *args)

    replaced: list[tuple[Any, str, Any]] = [
        (asyncio, "to_thread", to_thread),
        (time, "time", now),
        (time, "time_ns", lambda: round(now() * 1e9)),
        (time, "monotonic", lambda: loop.now),
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
