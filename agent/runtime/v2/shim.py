"""A shim process and the connection to it.

    CONNECTED --closed--> LOST --answers a redial--> CONNECTED
        |                  |
        | process ended    | process ended, or it dropped us and nobody can reach it
        +--------+---------+
                 v
               DEAD --cleanup.cleanup_after_dead_shim, or shutdown_shim--> CLEANED

There is one close authority per shim, `watch()`: it alone decides whether a closed connection means a dead shim, by the
pidfd. A shim is never taken for dead because it doesn't answer; one that closed the connection, lives, and can't be reached
again is killed by cleanup, since nobody could ever use it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from agent import failpoints, log, timeouts
from agent.aio import Supervisor, in_thread, within
from agent.api.runtime.task.v3.shim_pb2 import ConnectRequest, ConnectResponse
from agent.errdefs import Closed, DeadlineExceeded, OrlopError, Unavailable, Unimplemented
from agent.runtime.v2 import bootstrap
from agent.runtime.v2.bundle import Bundle
from agent.runtime.v2.gate import Gate
from agent.runtime.v2.node import Process, Processes
from agent.runtime.v2.records import ShimRecord
from agent.runtime.v2.shim_log import ShimLog
from agent.runtime.v2.transport import Connect, Connection

if TYPE_CHECKING:
    from agent.runtime.v2.task import Task

M = TypeVar("M", bound=Message)

_log = log.get("runtime")

_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
"""Seconds between two redials, growing; the latter also bounds the wait for the end of file of a process that has ended."""


class ShimState(StrEnum):
    CONNECTED = "connected"
    LOST = "lost"
    """No connection, but its process lives, as far as we know."""
    DEAD = "dead"
    """Its process has ended. What it left is not cleaned up yet."""
    CLEANED = "cleaned"
    """Its process has ended, and so has the cleanup; a container that could not be freed is in the ledger."""


class Shim:
    """One shim; made by `manager` and `load`, ended by `cleanup`.

    Owns its connection, the pidfd and the reader of its log. `tasks` are those that are in it, or on the way into it, the
    newest last; they leave it with `Delete`, or with its death.
    """

    def __init__(
        self,
        record: ShimRecord,
        bundle: Bundle,
        *,
        namespace: str,
        gate: Gate,
        supervisor: Supervisor,
        watchers: Supervisor,
        processes: Processes,
        connect: Connect,
    ) -> None:
        self.record = record
        self.bundle = bundle
        self.gate = gate
        self.supervisor = supervisor
        """Owns what ends by itself."""
        self.watchers = watchers
        """Owns what ends with the shim."""
        self.process: Process | None = None
        self.tasks: dict[str, Task] = {}
        self.state = ShimState.LOST
        self.cause = ""
        """Why it died, for people."""
        self.failure: Exception | None = None
        """Why something that it left beside its containers could not be freed."""
        self._namespace = namespace
        self._processes = processes
        self._connect = connect
        self._connection: Connection | None = None
        self._log: ShimLog | None = None
        self._changed = asyncio.Event()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def pinned(self) -> bool:
        return self.record.pinned

    def __str__(self) -> str:
        return f"shim {self.id} (process {self.record.pid or 'unknown'}, {self.state})"

    def attach_log(self, shim_log: ShimLog) -> None:
        """Own the reader of its log, which there has to be before it starts."""
        self._log = shim_log

    # ---- connection

    async def reach(self, budget: float) -> None:
        """Dial it and make sure who answers; then it is CONNECTED, and its process is known.

        A shim that says that it doesn't know the version of the task service that its start promised is asked for the other
        one (an upgrade replaced the binary under a running shim), and the bundle is corrected.

        Raises:
            Unavailable: nobody listens, or another process than the shim's answers.
            Closed: it hung up.
            DeadlineExceeded: no answer within `budget` seconds; says nothing about its life.
        """
        await within(budget, self._reach(), f"connecting to shim {self.id} at {self.record.address}")

    async def _reach(self) -> None:
        await failpoints.hit("runtime.shim.connect")
        promised = self.record.version
        connection = await self._connect(self.record.bootstrap, self._namespace, self.watchers, timeouts.SHIM_DIAL)
        try:
            pid = await self._greet(connection)
            if self.process is None:
                process = await self._processes.open(pid)
                if process is None:
                    raise Unavailable(f"shim {self.id} says that it is process {pid}, which doesn't exist")
                try:
                    await self._greet(connection)  # it still answers, so the pidfd is of the process that we mean
                except BaseException:
                    process.close()
                    raise
                self.process = process
                self.record = self.record.listening(self.record.bootstrap, process.identity)
            elif pid != self.process.pid:
                raise Unavailable(f"process {pid} answers at the address of shim {self.id}, which is process {self.process.pid}")
            if self.record.version != promised:
                _log.info("the shim speaks another version than its start said", shim=self.id, said=promised, speaks=self.record.version)
                await in_thread(bootstrap.write, self.bundle.path, self.record.bootstrap)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._enter(ShimState.CONNECTED)

    async def _greet(self, connection: Connection) -> int:
        """The pid that answers; settles the version of the task service."""
        request = ConnectRequest(id=self.id)
        try:
            answer = await connection.call(_service(self.record.version), "Connect", request, ConnectResponse)
        except Unimplemented:
            if self.record.protocol != "ttrpc":
                raise
            other = 5 - self.record.version
            answer = await connection.call(_service(other), "Connect", request, ConnectResponse)
            self.record = replace(self.record, version=other)
        return answer.shim_pid

    async def call(self, method: str, request: Message, response: type[M], *, timeout: float | None = None) -> M:
        """Call a method of the task service. `timeout` reaches the shim; see `transport.Connection.call`.

        Raises:
            Closed: there is no connection now, or it was lost before the answer came.
            OrlopError: as the shim answered.
        """
        if self._connection is None or self._connection.closed:
            raise Closed(f"there is no connection to {self}")
        return await self._connection.call(_service(self.record.version), method, request, response, timeout=timeout)

    async def wait_connected(self) -> None:
        """Return when it is connected.

        Raises:
            Closed: it is dead.
        """
        await self._until(ShimState.CONNECTED, ShimState.DEAD, ShimState.CLEANED)
        if self.state is not ShimState.CONNECTED:
            raise Closed(f"{self} is gone")

    async def wait_settled(self) -> bool:
        """After `Closed`: whether it is connected again (True), or dead."""
        if self.state is ShimState.CONNECTED and (self._connection is None or self._connection.closed):
            self._enter(ShimState.LOST)
        await self._until(ShimState.CONNECTED, ShimState.DEAD, ShimState.CLEANED)
        return self.state is ShimState.CONNECTED

    async def is_reached_again(self) -> bool:
        """`wait_settled`, for as long as a redial may take.

        Raises:
            DeadlineExceeded: neither yet; it is mute since before the daemon's restart.
        """
        return await within(timeouts.SHIM_SILENT + timeouts.SHIM_LOAD, self.wait_settled(), f"redialling {self}")

    # ---- tasks

    def admit(self, task: Task) -> None:
        """Let a task in, right before its Create is sent.

        Raises:
            Closed: the shim is dead, so that its cleanup would not see the task.
        """
        if self.state in (ShimState.DEAD, ShimState.CLEANED):
            raise Closed(f"{self} is gone")
        self.tasks[task.id] = task

    def dismiss(self, task: Task) -> None:
        """The task is not in the shim any more."""
        self.tasks.pop(task.id, None)

    # ---- life

    def alive(self) -> bool:
        """Whether its process is known and has not ended."""
        return self.process is not None and self.process.alive()

    def kill(self) -> None:
        """SIGKILL, by pidfd. Its containers live on until cleanup."""
        if self.process is not None:
            self.process.kill(signal.SIGKILL)

    async def watch(self, *, patient: bool = False) -> str:
        """Keep the connection until the shim is dead, or has to be killed; returns the cause, for people.

        `patient`: after a restart of the daemon, a shim that accepts and doesn't answer is waited for without end. It didn't
        drop us, so it may be busy or stopped, and its containers run.

        Raises OSError: no descriptor is left, say, which tells nothing about the shim; to be called again.
        """
        while self.alive():
            if self._connection is None or self._connection.closed:
                self._enter(ShimState.LOST)
                if not await self._redial(patient):
                    break
                patient = False
            await self._until_lost()
        return self.how_it_died()

    def how_it_died(self) -> str:
        """For people; as far as we can know, since it is not our child."""
        if self.alive():
            return f"its shim, process {self.record.pid}, closed the connection and could not be reached for {timeouts.SHIM_SILENT:g} s"
        last_words = self._log.last_error() if self._log is not None else ""
        return f"its shim, process {self.record.pid}, ended unexpectedly" + (f": {last_words}" if last_words else "")

    async def _until_lost(self) -> None:
        connection = self._connection
        if connection is not None:
            await _first(connection.wait_closed(), self._ended())
            if not connection.closed:  # a last answer may still be in the socket, and the end of file right behind it
                await _first(connection.wait_closed(), asyncio.sleep(_LAST_PAUSE))
                connection.close()

    async def _redial(self, patient: bool) -> bool:
        """Whether it answers again; else it is dead, or out of reach."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeouts.SHIM_SILENT
        pause = _FIRST_PAUSE
        while self.process is not None and self.process.alive():
            mute = False
            try:
                await self.reach(timeouts.SHIM_LOAD)
                return True
            except DeadlineExceeded as error:
                mute = True
                _log.warning("shim doesn't answer", shim=self.id, error=str(error))
            except OrlopError as error:
                _log.debug("shim not reached", shim=self.id, error=str(error))
            if loop.time() >= deadline and not (patient and mute):
                return False
            await _first(self._ended(), asyncio.sleep(pause))
            pause = min(pause * 2, _LAST_PAUSE)
        return False

    async def _ended(self) -> None:
        """Return when its process has ended; at once if cleanup, which comes after that, has given it back."""
        if self.process is not None:
            await self.process.wait()

    def died(self, cause: str) -> None:
        """Its process has ended; called by cleanup, which made sure."""
        self.cause = cause
        self._enter(ShimState.DEAD)

    async def close(self) -> None:
        """Give back the connection, the pidfd and the log. Idempotent; on a living shim, calls in flight are cancelled by it."""
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()
            self._connection = None
        if self._log is not None:
            self._log.close()
            self._log = None
        if self.process is not None:
            self.process.close()
            self.process = None

    def cleaned(self) -> None:
        """Nothing of it is left but what the ledger owns."""
        self._enter(ShimState.CLEANED)

    def log_tail(self) -> str:
        """What it logged last."""
        return self._log.tail() if self._log is not None else ""

    def _enter(self, state: ShimState) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _until(self, *states: ShimState) -> None:
        while self.state not in states:
            await self._changed.wait()


def _service(version: int) -> str:
    return f"containerd.task.v{version}.Task"


async def _first(*work: Awaitable[object]) -> None:
    """Wait for the first of these to end, and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()
