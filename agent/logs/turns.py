"""Who copies when: containers with something to read get turns, one after the other, each with a quota.

One thread, the *active* one, waits on epoll and gives the turns; reading and framing hold the GIL, so more would not be
faster. But a turn writes to a log, and a log's file system can hang. When a turn takes longer than `STUCK`, a new thread
becomes the active one, and the old one ends with its turn. A container whose last turn was slow gets the next one in a
thread of its own, so that a hung file system delays everybody else once, and not at each turn.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from agent import log
from agent.logs.container_log import ContainerLog, Scratch, Work

LOOK_AGAIN = 0.2
"""Seconds between looks at FIFOs in which an unfinished line was left, see `Stream.overlooked`."""
STUCK = 0.2
"""Seconds. A write into the page cache takes microseconds, and tenths where a disk throttles its writers."""

_log = log.get("logs.copier")


@dataclass
class _Entry:
    """A container's place."""

    container: ContainerLog
    queued: bool = False
    running: bool = False
    again: bool = False
    """Something came up for it while it was running."""
    slow: bool = False
    """Its last turn took longer than `STUCK`."""


@dataclass
class _Worker:
    """A thread that gives turns."""

    entry: _Entry | None = None
    """Whose turn it is; None while it waits."""
    since: float = 0.0
    """Monotonic time at which that turn began."""


class Turns:
    """The copier's threads. Their state is guarded by one lock, which is never held while something can block."""

    def __init__(self, on_change: Callable[[ContainerLog], None]) -> None:
        """`on_change` is called, in some thread, after a turn in which the container's `condition` changed."""
        self._on_change = on_change
        self._lock = threading.Lock()
        self._turn_ended = threading.Condition(self._lock)
        self._busy = threading.Event()
        self._stopping = threading.Event()
        self._queue: deque[_Entry] = deque()
        self._entries: dict[ContainerLog, _Entry] = {}
        self._unfinished: dict[ContainerLog, _Entry] = {}
        self._next_look = 0.0
        self._by_descriptor: dict[int, _Entry] = {}
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._active = _Worker()

    def start(self) -> None:
        _thread(self._work, self._active)
        _thread(self._watch)

    def post(self, container: ContainerLog, work: Work) -> Future[None]:
        """Have `work` done in a turn of the container's, soon."""
        future = container.post(work)
        with self._lock:
            self._ready(self._entries.setdefault(container, _Entry(container)))
        os.eventfd_write(self._wake, 1)
        return future

    def watch(self, container: ContainerLog) -> None:
        """From now on the container has a turn whenever there is something to read, or its writers are gone."""
        with self._lock:
            entry = self._entries.setdefault(container, _Entry(container))
            for stream in container.streams:
                self._by_descriptor[stream.descriptor] = entry
                # Edges, not levels: an unfinished line stays in the FIFO and would be reported for ever.
                self._epoll.register(stream.descriptor, select.EPOLLIN | select.EPOLLET)

    def unwatch(self, container: ContainerLog) -> None:
        """Turns only for what is posted. Comes before its descriptors are closed: epoll knows the FIFO, which the daemon has
        open too, and would go on reporting it under a number that soon is another container's.
        """
        with self._lock:
            for stream in container.streams:
                if self._by_descriptor.pop(stream.descriptor, None) is not None:
                    self._epoll.unregister(stream.descriptor)

    def forget(self, container: ContainerLog) -> None:
        """No turns any more. Comes when its last work is done."""
        with self._lock:
            self._entries.pop(container, None)
            self._unfinished.pop(container, None)

    def stop(self, budget: float) -> list[ContainerLog]:
        """No new turns; those that run have `budget` seconds. Returns the containers that are in none then."""
        with self._lock:
            self._stopping.set()
            self._busy.set()
            os.eventfd_write(self._wake, 1)
            self._turn_ended.wait_for(lambda: not any(entry.running for entry in self._entries.values()), budget)
            return [container for container, entry in self._entries.items() if not entry.running]

    def _work(self, worker: _Worker) -> None:
        with contextlib.closing(Scratch()) as scratch:
            while (entry := self._next(worker)) is not None:
                self._turn(entry, scratch)

    def _next(self, worker: _Worker) -> _Entry | None:
        """The next turn of the active worker; waits for one. None: it isn't the active one any more, or all ends."""
        while True:
            with self._lock:
                worker.entry = None
                if worker is not self._active:
                    # What it had may have more to read, and the active one may be waiting already.
                    os.eventfd_write(self._wake, 1)
                    return None
                timeout = 0 if self._queue else LOOK_AGAIN if self._unfinished else None
            # Also with turns waiting: nobody is to be overlooked because another container never pauses.
            ready = self._epoll.poll(timeout)
            with self._lock:
                if self._stopping.is_set():
                    return None
                for descriptor, _ in ready:
                    if descriptor == self._wake:
                        os.eventfd_read(self._wake)
                    elif (entry := self._by_descriptor.get(descriptor)) is not None:
                        self._ready(entry)
                if self._unfinished:
                    self._look_again(time.monotonic())
                while self._queue:
                    entry = self._queue.popleft()
                    entry.queued, entry.running = False, True
                    if entry.slow and _try_thread(self._solo, entry):
                        continue
                    worker.entry, worker.since = entry, time.monotonic()
                    self._busy.set()
                    return entry

    def _solo(self, entry: _Entry) -> None:
        with contextlib.closing(Scratch()) as scratch:
            self._turn(entry, scratch)
        os.eventfd_write(self._wake, 1)

    def _turn(self, entry: _Entry, scratch: Scratch) -> None:
        container, began, more = entry.container, time.monotonic(), False
        before = container.condition
        try:
            more = container.turn(scratch)
        except Exception:
            _log.exception("a turn failed", container=container.id)
            scratch.renew()
        if container.condition != before:
            self._on_change(container)
        with self._lock:
            entry.running, entry.slow = False, time.monotonic() - began >= STUCK
            if container.unfinished:
                self._unfinished[container] = entry
            else:
                self._unfinished.pop(container, None)
            if more or entry.again:
                entry.again = False
                self._ready(entry)
            self._turn_ended.notify_all()

    def _ready(self, entry: _Entry) -> None:
        """Queue it, once."""
        if entry.running:
            entry.again = True
        elif not entry.queued:
            entry.queued = True
            self._queue.append(entry)

    def _look_again(self, now: float) -> None:
        if now < self._next_look:
            return
        self._next_look = now + LOOK_AGAIN
        for entry in self._unfinished.values():
            if not entry.queued and not entry.running and entry.container.overlooked():
                self._ready(entry)

    def _watch(self) -> None:
        """Replace the active worker when it is stuck. Sleeps while there is nothing to copy."""
        while not self._stopping.is_set():
            self._busy.wait()
            self._busy.clear()
            while not self._stopping.wait(STUCK / 2):
                with self._lock:
                    stuck, since = self._active.entry, self._active.since
                    if stuck is None:
                        break
                    if time.monotonic() - since < STUCK:
                        continue
                    replacement = _Worker()
                    if _try_thread(self._work, replacement):
                        self._active = replacement
                        _log.warning("a container's log doesn't take what is written; it blocks nobody else", container=stuck.container.id)


def _thread(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _try_thread(function: Callable[..., None], *arguments: object) -> bool:
    """False: the process may have no more threads; whatever it was for goes on without one."""
    try:
        _thread(function, *arguments)
    except RuntimeError:
        return False
    return True
