"""Catches what blocks the event loop. Not for production: `serve` installs it when ORLOP_LOOP_GUARD is set, as e2e does.

A blocked loop stops every pod of the node at once, and on a developer's idle disk nobody notices. So calls that *can* block are
caught, not those that happened to: CPython's audit events tell of file opens, directory changes, subprocesses, locks, name
look-ups and SQLite connections (what a connection runs, `agent.store.database` asserts itself); calls without an event are
wrapped; and the CPU time of each callback of the loop is measured. Nothing of that exists until `install()`.

Let through are, because they can't block or can't be elsewhere:

- what happens before the loop runs, and in threads: neither has a running loop;
- imports: once in a process, from the disk that its code is on, and the caller can't go on without; tracebacks likewise read
  the source of code that runs;
- /dev/null.

Files in /proc and /sys are NOT let through, though they look like memory. /proc/PID/cmdline, environ and maps wait for the
mmap lock of a process that may be in state D; mountinfo waits for whoever holds the mount table, be it a mount of a dead NFS
server; cgroup files wait for cgroup_mutex, which a large rmdir holds. Nor are files in tmpfs: the guard can't tell a path's file
system without asking that file system.

Not seen: stat(2), and reads and writes of files that a thread opened.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from asyncio import events
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

from agent import log, metrics

CPU_BUDGET = 0.05
"""Seconds of this thread's CPU that one callback of the loop may take."""
EVENT = "the event loop was blocked"
"""What is logged, once for each place; tests look for it."""

_OPEN = "open"
_AUDITED = frozenset({
    _OPEN, "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "os.getxattr", "os.setxattr", "os.listxattr", "os.removexattr",
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system",
    "fcntl.flock", "fcntl.lockf", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "sqlite3.connect",
})  # fmt: skip
_WRAPPED = {
    "os": ("fsync", "fdatasync", "sync", "statvfs", "waitid"),
    "time": ("sleep",),
    "agent.linux.libc": ("mount", "umount2", "syncfs", "unshare", "setns"),
}
"""Functions that raise no audit event, by module. Of the modules that are loaded; nothing is imported for it."""

_OURS = ("agent.", "cri.")
_LET_THROUGH = frozenset({"importlib._bootstrap", "_frozen_importlib", "linecache"})


class LoopGuard:
    """Counts in `metrics.loop_blocked` and logs each place once. One per process; `install()` makes it."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()
        self._reporting = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook (PEP 578): called for every event of the process, so it leaves at once where it can."""
        if event not in _AUDITED or self._reporting or events._get_running_loop() is None:
            return
        subject = arguments[0] if arguments else ""
        if event == _OPEN and subject == os.devnull:
            return
        if (place := _calling_place()) is not None:
            self._report(event, place, subject=_text(subject))

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, reported when it is called on a thread with a running loop."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if events._get_running_loop() is not None and (place := _calling_place()) is not None:
                self._report(name, place, subject=_text(args[0]) if args else "")
            return function(*args, **kwargs)

        return watched

    def timed(self, run: Callable[[asyncio.Handle], None]) -> Callable[[asyncio.Handle], None]:
        """`asyncio.Handle._run`, with its CPU time measured. Time in which the thread waits, or others have the CPU, is not in it."""

        def measured(handle: asyncio.Handle) -> None:
            callback = handle._callback  # type: ignore[attr-defined]  # typeshed leaves it out; a handle that ran forgets it
            started = time.thread_time()
            run(handle)
            if (spent := time.thread_time() - started) > CPU_BUDGET:
                self._report("cpu", _callback_place(callback), milliseconds=round(spent * 1000))

        return measured

    def _report(self, call: str, place: str, **fields: object) -> None:
        metrics.loop_blocked.labels(call).inc()
        if (call, place) in self._seen:
            return
        self._seen.add((call, place))
        self._reporting = True  # what the logging opens is not the agent's
        try:
            log.get("aio").error(EVENT, call=call, place=place, **fields)
        finally:
            self._reporting = False


def install() -> None:
    """Watch this process from now on. It can't be undone: audit hooks stay."""
    guard = LoopGuard()
    for module, names in _WRAPPED.items():
        if (loaded := sys.modules.get(module)) is not None:
            for name in names:
                setattr(loaded, name, guard.wrap(f"{module.rpartition('.')[2]}.{name}", getattr(loaded, name)))
    setattr(asyncio.Handle, "_run", guard.timed(asyncio.Handle._run))  # noqa: B010  # an assignment to a method, which mypy refuses
    sys.addaudithook(guard.audit)


def _calling_place() -> str | None:
    """Where in the agent the present call comes from: the innermost frame of its code, else of any. None for an import."""
    frame: FrameType | None = sys._getframe(2)
    innermost, ours = frame, None
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name in _LET_THROUGH:
            return None
        if name == __name__:
            break  # `measured`: below it is the loop
        if ours is None and name.startswith(_OURS):
            ours = frame
        frame = frame.f_back
    found = ours or innermost
    return "" if found is None else _place(found.f_code.co_filename, found.f_lineno, found.f_code.co_qualname)


def _callback_place(callback: object) -> str:
    """Which code a callback of the loop ran; for a task, where in the agent it waits now that it has run."""
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return f"task {owner.get_name()!r}, now {_waiting_place(owner.get_coro())}"
    function = getattr(callback, "func", callback)  # of a functools.partial
    code = getattr(function, "__code__", None)
    return repr(function) if code is None else _place(code.co_filename, code.co_firstlineno, code.co_qualname)


def _waiting_place(coroutine: object) -> str:
    place = f"ended ({getattr(coroutine, '__qualname__', coroutine)})"
    while isinstance(coroutine, Coroutine):
        frame: FrameType | None = getattr(coroutine, "cr_frame", None)
        if frame is not None and (str(frame.f_globals.get("__name__", "")).startswith(_OURS) or place.startswith("ended")):
            place = f"at {_place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)}"
        coroutine = getattr(coroutine, "cr_await", None)
    return place


def _place(file: str, line: int, function: str) -> str:
    path = Path(file)
    return f"{'/'.join(path.parts[-3:])}:{line} {function}"


def _text(subject: object) -> str:
    return os.fsdecode(subject) if isinstance(subject, (str, bytes, os.PathLike)) else repr(subject)
