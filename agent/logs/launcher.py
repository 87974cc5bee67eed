"""Finds the node's log copier, or starts it: at most one is ever at work. Used by `LogCopier` alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from agent import errdefs, log, metrics, timeouts
from agent.aio import in_thread, within
from agent.linux.processes import Command, Processes
from agent.logs import protocol
from agent.logs.connection import Connection

_log = log.get("logs")
_PACKAGES = Path(__file__).parents[2]
_DEATH = 2.0
"""Seconds from SIGKILL to the end of a copier. One that a hung file system holds in the kernel doesn't end, but it runs none
of its own code any more."""


class Launcher:
    def __init__(self, socket_path: Path, processes: Processes, cgroup: str, on_event: Callable[[protocol.Message], None]) -> None:
        self._path = socket_path
        self._processes = processes
        self._cgroup = cgroup
        self._on_event = on_event

    async def connect(self) -> Connection:
        """A connection to a copier of our version that answers.

        One of another version is asked to end, one that doesn't answer is killed, and then, as when there is none, another
        is started.

        Raises:
            Unavailable, OSError: it can't be started, or there is one that takes no connections.
            DeadlineExceeded: it doesn't become ready, or the old one doesn't end.
        """
        connection = self._dial()
        if connection is not None and await self._is_usable(connection):
            return connection
        await self._start()
        connection = self._dial()
        if connection is None:
            raise errdefs.Unavailable(f"the log copier ended right after its start ({self._path}); its log is on our stderr")
        return connection

    def _dial(self) -> Connection | None:
        try:
            return Connection(self._path, self._on_event)
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    async def _is_usable(self, connection: Connection) -> bool:
        """Whether the copier is one of ours that answers; if it isn't, it is gone on return."""
        usable = False
        try:
            process = await self._processes.open(connection.peer)
            if process is None:
                return False
            with process:
                try:
                    answer = await within(timeouts.LOG_COPIER_PING, connection.call("ping"), "log copier: ping")
                except errdefs.DeadlineExceeded as error:
                    # Safe, unlike with a shim: a copier that is killed loses no line and doubles at most one read.
                    _log.warning("a mute log copier is killed", pid=process.pid, error=str(error))
                    process.kill(signal.SIGKILL)
                    with contextlib.suppress(errdefs.DeadlineExceeded):
                        await within(_DEATH, process.wait(), "the end of the mute log copier")
                    await in_thread(self._path.unlink, missing_ok=True)
                else:
                    usable = answer["version"] == protocol.VERSION
                    if not usable:
                        _log.info("a log copier of another version is replaced", pid=process.pid, version=answer["version"])
                        await within(timeouts.LOG_COPIER_CALL, connection.call("quit"), "log copier: quit")
                        await within(timeouts.LOG_COPIER_CALL, process.wait(), "the end of the old log copier")
            return usable
        finally:
            if not usable:
                connection.close()

    async def _start(self) -> None:
        reader, writer = os.pipe()
        try:
            arguments = ("--socket", str(self._path), "--ready-fd", str(writer))
            environment = {name: value for name in ("PATH", "TZ") if (value := os.environ.get(name)) is not None}
            command = Command(
                (sys.executable, "-P", "-m", "agent.logs.copier", *arguments),
                cwd=Path("/"),
                env={**environment, "PYTHONPATH": str(_PACKAGES)},
                cgroup=self._cgroup,
                pass_fds=(writer,),
            )
            with await self._processes.start(command) as process:
                os.close(writer)
                writer = -1
                try:
                    await within(timeouts.LOG_COPIER_START, _readable(reader), "the start of the log copier")
                except BaseException:
                    process.kill(signal.SIGKILL)
                    raise
                if not os.read(reader, 1):
                    raise errdefs.Unavailable(f"the log copier (pid {process.pid}) ended before it was ready; its log is on our stderr")
                _log.info("log copier started", pid=process.pid)
                metrics.log_copier_starts.inc()
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
