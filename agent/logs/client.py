"""The daemon's side of the log copier: starts it, tells it what to copy, and survives its death.

The daemon makes each container's FIFOs and keeps a read end of its own (decisions.md 24, 25): with the copier down, what a
container wrote last would be gone when its shim closes. A copier that dies is started again and every container's streams
are sent again; a daemon that dies finds the copier running, and `adopt` opens the FIFOs again. The pods layer calls `open`
before Create, `drain` after the exit, and `close` and `remove_fifos` as releases of the ledger kinds LOG and FIFO.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from agent import errdefs, failpoints, log, metrics, timeouts
from agent.aio import KeyedLock, Supervisor, in_thread, within
from agent.identifiers import validate
from agent.linux.processes import Processes
from agent.logs import fifos, protocol
from agent.logs.connection import Connection
from agent.logs.fifos import Stdio
from agent.logs.framing import MAX_LINE
from agent.logs.launcher import Launcher

_log = log.get("logs")
_RETRY_DELAYS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each new attempt to have a copier; the last one repeats."""
_HEARTBEAT = 15.0
"""Seconds between two pings of the copier."""
_ANSWER_MARGIN = 1.0
"""Seconds that the copier's own drain timer gets before we stop waiting for its answer."""


@dataclass(frozen=True)
class DrainResult:
    """How draining ended: all streams at their end; the budget over before that; or records lost, or no copier to ask."""

    result: Literal["eof", "timeout", "error"]
    bytes: int = 0
    """Read from the container since its streams were opened in the running copier."""
    dropped: int = 0
    """Bytes of records that couldn't be written."""


@dataclass(frozen=True)
class ContainerState:
    """One container in the running copier."""

    id: str
    log_path: Path | None
    ended: bool
    """All its streams are at their end."""
    bytes: int
    errors: int
    """Writes that failed."""
    dropped: int


class Connects(Protocol):
    """What finds or starts a copier: `Launcher`."""

    async def connect(self) -> Connection: ...


@dataclass
class _Container:
    """A container whose read ends we hold."""

    id: str
    log_path: Path | None
    descriptors: dict[str, int]
    confirmed: bool = False
    """A copier has opened it once. Until then only `open` itself sends it: it must fail if the log can't be opened."""


class LogCopier:
    """The one copier of a node. Owns the read ends that it opens until `close`; calls may come from any task.

    While a dead copier is started again calls wait, for `timeouts.LOG_COPIER_CALL` at the most. Each may be repeated. A
    cancelled caller stops waiting only: the call goes on.
    """

    def __init__(
        self, state_dir: Path, processes: Processes, *, max_line: int = MAX_LINE, cgroup: str = "", launcher: Connects | None = None
    ) -> None:
        """`max_line`: bytes of a record's content, -1 for no limit. `cgroup`: where the copier runs, which must outlive the
        daemon's unit; empty for ours. `launcher` is another one in tests only.
        """
        self._io = state_dir / "io"
        self._max_line = max_line
        self._launcher = launcher or Launcher(state_dir / "log-copier.sock", processes, cgroup, self._on_event)
        self._supervisor = Supervisor("logs")
        self._locks = KeyedLock()
        self._containers: dict[str, _Container] = {}
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._last_failure = "it is being started"
        self._errors_seen: dict[str, int] = {}

    async def start(self) -> None:
        """Connect to the copier that runs, or start one, and keep it so until `stop`.

        Raises:
            Unavailable: none within the time that it takes to find out that one is mute, and to start another. The attempts go on
                until `stop`.
        """
        await in_thread(self._io.mkdir, 0o700, parents=True, exist_ok=True)
        self._supervisor.start(self._keep_connected(), name="log copier")
        try:
            await within(timeouts.LOG_COPIER_PING + timeouts.LOG_COPIER_START, self._connected.wait(), "log copier")
        except errdefs.DeadlineExceeded as error:
            raise errdefs.Unavailable(f"{error}: {self._last_failure}; it is tried again") from error

    async def stop(self) -> None:
        """Let go of the copier and of the read ends. It copies on; without any container it ends itself."""
        await self._supervisor.stop(0)
        for container in self._containers.values():
            fifos.close(container.descriptors)
        self._containers.clear()

    async def open(self, container_id: str, log_path: Path | None, terminal: bool) -> Stdio:
        """Make a container's FIFOs and have them copied into `log_path` (None: read and discarded).

        On return the read ends are open here and in the copier, so Create may follow. Again with the same id: the same.

        Raises:
            NotFound: the log's directory doesn't exist.
            InvalidArgument: the log is a symbolic link, or the id isn't one.
            PermissionDenied, ResourceExhausted, FailedPrecondition, Internal: the log can't be opened.
            DeadlineExceeded: no copier answered, or the log's file system hangs.
            OSError: the FIFOs can't be made.
            In each case nothing is left, or, with DeadlineExceeded, what `close` and `remove_fifos` take back.
        """
        return await self._supervisor.detached(self._open(container_id, log_path, terminal), name=f"open {container_id}")

    async def adopt(self, container_id: str, log_path: Path | None, terminal: bool) -> Stdio:
        """After a restart of the daemon: hold an existing container's FIFOs again, and have them copied if they aren't.

        A log that can't be opened is no reason to let the container block: its records are dropped and counted until it can.

        Raises:
            NotFound: its FIFOs are gone.
            DeadlineExceeded: no copier answered.
        """
        return await self._supervisor.detached(self._adopt(container_id, log_path, terminal), name=f"adopt {container_id}")

    async def reopen(self, container_id: str) -> None:
        """Write to a new file at the container's log path from now on, for `ReopenContainerLog` after a rotation.

        Raises:
            NotFound: no such container, or its log's directory is gone; others as `open`. The old file stays in use then.
        """
        await failpoints.hit("logs.reopen")
        await self._call("reopen", id=container_id)

    async def drain(self, container_id: str, budget: float) -> DrainResult:
        """Wait until all that an exited container wrote is in its log, for `budget` seconds. Doesn't raise for lost logs."""
        await failpoints.hit("logs.drain")
        deadline = time.monotonic() + budget

        def request(connection: Connection) -> Awaitable[protocol.Message]:
            return connection.call("drain", id=container_id, budget_ms=max(0, round(1000 * (deadline - time.monotonic()))))

        try:
            answer = await self._ask(request, f"log copier: drain {container_id}", budget + _ANSWER_MARGIN)
        except errdefs.DeadlineExceeded:
            return DrainResult("timeout")
        except errdefs.OrlopError as error:
            _log.warning("a container's log could not be drained", container=container_id, error=str(error))
            return DrainResult("error")
        return DrainResult(answer["result"], answer["bytes"], answer["dropped"])

    async def close(self, container_id: str) -> None:
        """Copy what is there, close the log and every read end. Releases LOG; idempotent, whether known here or not.

        Raises:
            DeadlineExceeded: the copier didn't confirm; it may still write. Nothing is released here.
        """
        await self._supervisor.detached(self._close(container_id), name=f"close {container_id}")

    async def remove_fifos(self, container_id: str) -> None:
        """Remove the container's FIFO directory. Releases FIFO; idempotent. Raises OSError."""
        directory = self._io / validate(container_id, "container id")
        await failpoints.hit("logs.remove_fifos")
        await in_thread(fifos.remove, directory)

    async def fifo_owners(self) -> list[str]:
        """The ids, of containers and execs, that have a FIFO directory on the node: for recovery and audit."""
        return sorted(await in_thread(os.listdir, self._io))

    async def containers(self) -> list[ContainerState]:
        """What the running copier copies, whoever asked it to: for recovery and audit."""
        found: list[ContainerState] = []
        more = True
        while more:
            answer = await self._call("list", after=found[-1].id if found else "")
            for row in answer["containers"]:
                path = None if row["path"] is None else Path(row["path"])
                found.append(ContainerState(row["id"], path, row["ended"], row["bytes"], row["errors"], row["dropped"]))
            more = answer["more"]
        return found

    async def _open(self, container_id: str, log_path: Path | None, terminal: bool) -> Stdio:
        directory = self._io / validate(container_id, "container id")
        async with self._locks.hold(container_id):
            known = self._containers.get(container_id)
            if known is None or not known.confirmed:
                await failpoints.hit("logs.open.fifos")
                try:
                    container = await self._hold(container_id, log_path, terminal, fifos.make_and_open)
                    await failpoints.hit("logs.open.send")
                    await self._send(container, strict=True)
                except Exception:
                    await self._undo_open(container_id)
                    raise
        return fifos.stdio(directory, terminal)

    async def _adopt(self, container_id: str, log_path: Path | None, terminal: bool) -> Stdio:
        directory = self._io / validate(container_id, "container id")
        async with self._locks.hold(container_id):
            try:
                container = await self._hold(container_id, log_path, terminal, fifos.open_for_reading)
            except FileNotFoundError as error:
                raise errdefs.NotFound(f"the FIFOs of container {container_id} are gone ({error.filename}): its log ends here") from error
            await self._send(container, strict=False)
        return fifos.stdio(directory, terminal)

    async def _hold(
        self, container_id: str, log_path: Path | None, terminal: bool, opened: Callable[[Path, bool], dict[str, int]]
    ) -> _Container:
        if container_id not in self._containers:
            descriptors = await in_thread(opened, self._io / container_id, terminal)
            self._containers[container_id] = _Container(container_id, log_path, descriptors)
        return self._containers[container_id]

    async def _undo_open(self, container_id: str) -> None:
        """Leave nothing of an `open` that failed; what can't be undone now is the ledger's to retry."""
        try:
            if container_id in self._containers:
                await self._close_held(container_id)
            await in_thread(fifos.remove, self._io / container_id)
        except (OSError, errdefs.OrlopError) as error:
            _log.warning("a failed open of container streams left something", container=container_id, error=str(error))

    async def _close(self, container_id: str) -> None:
        await failpoints.hit("logs.close")
        async with self._locks.hold(container_id):
            await self._close_held(container_id)

    async def _close_held(self, container_id: str) -> None:
        await self._call("close", id=container_id)
        self._errors_seen.pop(container_id, None)
        container = self._containers.pop(container_id, None)
        if container is not None:
            fifos.close(container.descriptors)

    async def _send(self, container: _Container, *, strict: bool) -> None:
        await self._call("open", tuple(container.descriptors.values()), **self._open_fields(container, strict))
        container.confirmed = True

    def _open_fields(self, container: _Container, strict: bool) -> dict[str, Any]:
        path = None if container.log_path is None else str(container.log_path)
        streams = list(container.descriptors)
        return {"id": container.id, "streams": streams, "path": path, "max_line": self._max_line, "strict": strict}

    async def _call(self, op: str, descriptors: Sequence[int] = (), **fields: Any) -> protocol.Message:
        what = f"log copier: {op} {fields.get('id', '')}".rstrip()
        return await self._ask(lambda connection: connection.call(op, descriptors, **fields), what, timeouts.LOG_COPIER_CALL)

    async def _ask(self, request: Callable[[Connection], Awaitable[protocol.Message]], what: str, budget: float) -> protocol.Message:
        """Send a request; to the next copier again if the one that got it dies."""

        async def ask() -> protocol.Message:
            while True:
                await self._connected.wait()
                if self._connection is not None:
                    with contextlib.suppress(errdefs.Closed):
                        return await request(self._connection)
                # Whoever keeps the connection hears of its loss after us: let it.
                await asyncio.sleep(0)

        if not self._connected.is_set():
            what = f"{what} (no copier now: {self._last_failure})"
        return await within(budget, ask(), what)

    async def _keep_connected(self) -> None:
        """Have a copier, tell it everything, wait until it is gone, begin again."""
        failures = 0
        while True:
            await asyncio.sleep(_RETRY_DELAYS[min(failures, len(_RETRY_DELAYS) - 1)])
            try:
                connection = await self._launcher.connect()
            except (OSError, errdefs.OrlopError) as error:
                failures += 1
                self._last_failure = str(error)
                _log.error("no log copier yet", error=str(error), attempt=failures)
                continue
            failures, self._last_failure = 0, "its connection was lost"
            try:
                await self._send_all(connection)
                self._connection = connection
                self._connected.set()
                await self._watch(connection)
            except (OSError, errdefs.OrlopError) as error:
                self._last_failure = str(error)
            finally:
                self._connected.clear()
                self._connection = None
                connection.close()
            _log.warning("the log copier is gone; what containers write waits in their FIFOs", reason=self._last_failure)

    async def _send_all(self, connection: Connection) -> None:
        """Tell a new copier, or one that knows it all, of every container. One that can't be sent doesn't stop the others."""
        containers = [container for container in self._containers.values() if container.confirmed]
        calls = (connection.call("open", tuple(each.descriptors.values()), **self._open_fields(each, strict=False)) for each in containers)
        sent = asyncio.gather(*calls, return_exceptions=True)
        results = await within(timeouts.LOG_COPIER_CALL, sent, "log copier: sending it all containers")
        for container, result in zip(containers, results, strict=True):
            if isinstance(result, BaseException):
                _log.error("a container's log isn't copied", container=container.id, error=str(result))

    async def _watch(self, connection: Connection) -> None:
        """Return when the connection is gone.

        Raises:
            DeadlineExceeded: the copier doesn't answer. The launcher will see the same, and replace it.
        """
        while True:
            try:
                async with asyncio.timeout(_HEARTBEAT):
                    return await connection.wait_closed()
            except TimeoutError:
                await within(timeouts.LOG_COPIER_PING, connection.call("ping"), "log copier: ping")

    def _on_event(self, event: protocol.Message) -> None:
        """Records of a container couldn't be written. Counts are one copier's totals; the next one begins at zero."""
        container_id, errors = str(event["id"]), int(event["errors"])
        seen = self._errors_seen.get(container_id, 0)
        metrics.log_write_errors.inc(errors - seen if errors >= seen else errors)
        self._errors_seen[container_id] = errors
        _log.error("log records lost", container=container_id, path=event["path"], error=event["error"], dropped_bytes=event["dropped"])
