"""The log copier: `python -m agent.logs.copier --socket PATH`, one process per node, started by `agent.logs.client`.

This module is its main thread, which talks to the daemon and never touches a log: `Turns` does, in threads of its own, so
that a log file system that hangs delays no answer. It serves any number of connections, and goes on without one. It ends
on SIGTERM or `quit`, in order, with nothing lost and nothing doubled; and by itself when it has neither a container nor a
connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agent import errdefs, log
from agent.aio import KeyedLock, Supervisor
from agent.logs import protocol
from agent.logs.container_log import ContainerLog, Stream
from agent.logs.log_file import LogFile
from agent.logs.turns import Turns

STOP = 5.0
"""Seconds for turns that run when the process is told to end. A file system that hangs for longer may get a read twice."""
LONELY = 30.0
"""Seconds until a copier that nobody connects to after its start ends again."""
REPORT = 1.0
"""Seconds between two reports of write errors of one container."""

_log = log.get("logs.copier")


class Copier:
    """The control plane. Everything runs on the event loop."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._supervisor = Supervisor("copier")
        self._locks = KeyedLock()
        self._containers: dict[str, ContainerLog] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._reporting: dict[str, asyncio.TimerHandle] = {}
        self._connections: dict[socket.socket, None] = {}
        self._listener: socket.socket | None = None
        self._turns = Turns(self._on_turn)
        self._end = asyncio.Event()

    async def run(self, ready_descriptor: int) -> None:
        """Serve until told to end. A byte to `ready_descriptor`, if it isn't negative, says that the socket takes connections.

        Raises:
            FailedPrecondition: another copier serves the socket.
        """
        self._listener = _listen(self._path)
        self._loop.add_reader(self._listener.fileno(), self._accept, self._listener)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._end.set)
        self._turns.start()
        self._loop.call_later(LONELY, self._end_if_useless)
        if ready_descriptor >= 0:
            os.write(ready_descriptor, b"\n")
            os.close(ready_descriptor)
        _log.info("log copier serves", socket=self._path, pid=os.getpid())
        await self._end.wait()
        self._stop()

    def _stop(self) -> None:
        """The daemon learns of the end by its connections, and starts the next copier: so the copying ends before."""
        for container in self._turns.stop(STOP):
            container.flush()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        _log.info("log copier ends", containers=len(self._containers))

    def _end_if_useless(self) -> None:
        if not self._connections and not self._containers:
            self._end.set()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            self._connections[connection] = None
            self._loop.add_reader(connection.fileno(), self._receive, connection)

    def _receive(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            packet, descriptors, flags, _ = socket.recv_fds(
                connection, protocol.PACKET, protocol.DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )  # fmt: skip
            if not packet or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ConnectionResetError
            request = protocol.decode(packet)
        except BlockingIOError:
            return
        except (OSError, errdefs.Internal):
            _close_all(descriptors)
            self._hang_up(connection)
            return
        self._supervisor.start(self._serve(connection, request, descriptors), name=f"{request.get('op')} {request.get('id', '')}")

    def _hang_up(self, connection: socket.socket) -> None:
        if connection in self._connections:
            del self._connections[connection]
            self._loop.remove_reader(connection.fileno())
            connection.close()
            self._end_if_useless()

    async def _serve(self, connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        """Carry out one request. Those for one id start in the order in which they came: tasks do, and the lock is fair."""
        answer: dict[str, Any]
        try:
            operation = self._operations.get(request["op"])
            if operation is None:
                raise errdefs.Unimplemented(f"log copier: no operation {request['op']!r}")
            answer = await operation(self, request, descriptors)
        except (OSError, errdefs.OrlopError, KeyError, TypeError, ValueError) as error:
            answer = protocol.refusal(error)
        finally:
            _close_all(descriptors)
        self._say(connection, {"seq": request.get("seq"), **answer})

    def _say(self, connection: socket.socket, message: protocol.Message) -> None:
        """Send, or hang up: a daemon that doesn't read its answers is gone or as good as gone."""
        if connection in self._connections:
            try:
                connection.send(protocol.encode(message))
            except OSError:
                self._hang_up(connection)

    async def _ping(self, _request: dict[str, Any], _descriptors: list[int]) -> dict[str, Any]:
        return {"pid": os.getpid(), "version": protocol.VERSION}

    async def _quit(self, _request: dict[str, Any], _descriptors: list[int]) -> dict[str, Any]:
        self._loop.call_soon(self._end.set)
        return {}

    async def _open(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        names, path, container_id = request["streams"], request["path"], request["id"]
        if len(names) != len(descriptors) or not all(stat.S_ISFIFO(os.fstat(each).st_mode) for each in descriptors):
            raise errdefs.InvalidArgument(f"open {container_id}: {len(descriptors)} descriptors, and not a FIFO for each of {names}")
        async with self._locks.hold(container_id):
            old = self._containers.get(container_id)
            if old is not None and _inodes(descriptors) == [stream.inode for stream in old.streams]:
                return {}
            if old is not None:
                await self._finish(old)
            streams = [Stream(name, each, request["max_line"]) for name, each in zip(names, descriptors, strict=True)]
            descriptors.clear()
            container = ContainerLog(container_id, streams, None if path is None else LogFile(path))
            if request["strict"]:
                try:
                    await asyncio.wrap_future(self._turns.post(container, container.open))
                except OSError:
                    self._turns.forget(container)
                    raise
            self._containers[container_id] = container
            self._changed[container_id] = asyncio.Event()
            self._turns.watch(container)
        return {}

    async def _reopen(self, request: dict[str, Any], _descriptors: list[int]) -> dict[str, Any]:
        async with self._locks.hold(request["id"]):
            container = self._container(request["id"])
            await asyncio.wrap_future(self._turns.post(container, container.reopen))
        return {}

    async def _drain(self, request: dict[str, Any], _descriptors: list[int]) -> dict[str, Any]:
        container = self._container(request["id"])
        changed = self._changed[container.id]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(request["budget_ms"] / 1000):
                await asyncio.wrap_future(self._turns.post(container, container.drain))
                while not container.ended:
                    changed.clear()
                    await changed.wait()
        dropped = 0 if container.log is None else container.log.dropped
        result = "timeout" if not container.ended else "error" if dropped else "eof"
        return {"result": result, "bytes": container.copied, "dropped": dropped}

    async def _close(self, request: dict[str, Any], _descriptors: list[int]) -> dict[str, Any]:
        async with self._locks.hold(request["id"]):
            if (container := self._containers.get(request["id"])) is not None:
                await self._finish(container)
        return {}

    async def _list(self, request: dict[str, Any], _descriptors: list[int]) -> dict[str, Any]:
        ids = sorted(each for each in self._containers if each > request["after"])
        page = [self._containers[each] for each in ids[: protocol.PAGE]]
        return {"containers": [_row(container) for container in page], "more": len(ids) > len(page)}

    _operations: Mapping[str, Callable[[Copier, dict[str, Any], list[int]], Awaitable[dict[str, Any]]]] = {
        "ping": _ping,
        "open": _open,
        "reopen": _reopen,
        "drain": _drain,
        "close": _close,
        "list": _list,
        "quit": _quit,
    }

    def _container(self, container_id: str) -> ContainerLog:
        container = self._containers.get(container_id)
        if container is None:
            raise errdefs.NotFound(f"the log copier has no container {container_id}")
        return container

    async def _finish(self, container: ContainerLog) -> None:
        """Copy the rest and let go of everything. With a log that hangs this takes as long as it hangs."""
        self._turns.unwatch(container)
        await asyncio.wrap_future(self._turns.post(container, container.close))
        self._turns.forget(container)
        self._report(container)
        del self._containers[container.id]
        self._changed.pop(container.id).set()
        self._end_if_useless()

    def _on_turn(self, container: ContainerLog) -> None:
        """In a thread of `Turns`."""
        self._loop.call_soon_threadsafe(self._on_change, container)

    def _on_change(self, container: ContainerLog) -> None:
        if (changed := self._changed.get(container.id)) is not None:
            changed.set()
        if container.errors and container.id in self._containers and container.id not in self._reporting:
            self._reporting[container.id] = self._loop.call_later(REPORT, self._report, container)

    def _report(self, container: ContainerLog) -> None:
        """Tell every daemon what was lost so far."""
        if (timer := self._reporting.pop(container.id, None)) is not None:
            timer.cancel()
        if container.log is None or not container.errors:
            return
        _log.error("log records lost", container=container.id, error=container.log.last_error, dropped_bytes=container.log.dropped)
        for connection in list(self._connections):
            self._say(connection, {"event": "write-errors", "error": container.log.last_error, **_row(container)})


def _row(container: ContainerLog) -> dict[str, Any]:
    path, dropped = (None, 0) if container.log is None else (container.log.path, container.log.dropped)
    counts = {"bytes": container.copied, "errors": container.errors, "dropped": dropped}
    return {"id": container.id, "path": path, "ended": container.ended, **counts}


def _inodes(descriptors: list[int]) -> list[tuple[int, int]]:
    return [(status.st_dev, status.st_ino) for status in map(os.fstat, descriptors)]


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _listen(path: str) -> socket.socket:
    """A listening socket at `path`, in place of one that nobody serves any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise errdefs.FailedPrecondition(f"another log copier serves {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(64)
    return listener


def main() -> None:
    """The process. Ends by `os._exit`: a thread that hangs in a write to a log would keep the interpreter from ending."""
    parser = argparse.ArgumentParser(prog="python -m agent.logs.copier", description="Copies container output into CRI log files.")
    parser.add_argument("--socket", required=True, help="where the daemon connects")
    parser.add_argument("--ready-fd", type=int, default=-1, help="descriptor that gets a byte when the socket takes connections")
    arguments = parser.parse_args()
    log.configure()
    os.umask(0o027)  # logs are 0640
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # three descriptors for a container
    status = 0
    try:
        asyncio.run(_serve(arguments.socket, arguments.ready_fd))
    except (OSError, errdefs.OrlopError) as error:
        _log.error("log copier fails", error=str(error))
        status = 1
    sys.stderr.flush()
    os._exit(status)


async def _serve(path: str, ready_descriptor: int) -> None:
    await Copier(path).run(ready_descriptor)


if __name__ == "__main__":
    main()
