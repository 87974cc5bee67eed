"""Serves ttrpc on a unix socket: `agent.runtime.v2` takes the events of shims with it (`Events.Forward` at `TTRPC_ADDRESS`).

Shims keep the path for life, so it stays the same over restarts. Only processes of the agent's own uid are heard.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from agent import failpoints, log, timeouts
from agent.aio import Supervisor, in_thread
from agent.api.request_pb2 import Request
from agent.errdefs import DeadlineExceeded, FailedPrecondition, Internal, OrlopError, Unavailable, Unimplemented
from agent.ttrpc.protocol import Call, Refusal, ServerConnection

M = TypeVar("M", bound=Message)
Metadata = Mapping[str, str]
"""Of a request; a key that was given twice has its first value."""
Handler = Callable[[M, Metadata], Awaitable[Message]]

_log = log.get("ttrpc")
_MAX_CALLS = 64  # per connection; with more in flight its bytes stay in the kernel. A shim sends one event after the other.
_BACKLOG = 1024  # after a restart all shims of the node come at once


@dataclass(frozen=True)
class _Method:
    request_type: type[Message]
    handler: Handler[Any]


class Server:
    """Register methods, then `serve()`; `stop()` ends the connections and their handlers, for good.

    Args:
        uid: Whose processes may connect; the agent's own by default.
    """

    def __init__(self, *, uid: int | None = None) -> None:
        self._uid = os.geteuid() if uid is None else uid
        self._methods: dict[tuple[str, str], _Method] = {}
        self._services: set[str] = set()
        self._supervisor = Supervisor("ttrpc server")
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        self._stopping = False
        self._path: Path | None = None
        self._inode = 0
        self._all_gone = asyncio.Event()

    def register(self, service: str, method: str, request_type: type[M], handler: Handler[M]) -> None:
        """Answer `service`/`method` with what `handler` returns. Its `OrlopError`s are sent as status; others as code 13, and logged.

        The handler is cancelled when its caller's connection or time is over.
        """
        self._services.add(service)
        self._methods[service, method] = _Method(request_type, handler)

    async def serve(self, path: Path) -> None:
        """Listen at `path`; returns as soon as shims can connect. A socket that an earlier run left there is replaced.

        Raises:
            FailedPrecondition: Something other than a socket is at `path`.
            Unavailable: The socket can't be made there.
        """
        await failpoints.hit("ttrpc.serve.listen")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._inode = await in_thread(_bind, listening, path)
            self._path = path
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_unix_server(lambda: _Connection(self), sock=listening, backlog=_BACKLOG)
        except BaseException:
            listening.close()
            raise

    async def stop(self, budget: float = timeouts.DAEMON_STOP) -> None:
        """Take no more calls, let running handlers end for `budget` seconds, then cancel them, close all connections, remove the socket."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        self._stopping = True
        listener.close()
        try:
            for connection in self._connections:
                connection.update_reading()
            await self._supervisor.stop(budget)
        finally:
            for connection in list(self._connections):
                connection.abort()
        if self._connections:
            await self._all_gone.wait()
        if self._path is not None:
            await in_thread(_unlink, self._path, self._inode)

    def _admit(self, connection: _Connection, uid: int) -> bool:
        """Whether a new connection, from a process of `uid`, may stay."""
        if self._stopping:
            return False
        if uid != self._uid:
            _log.warning("connection of another user refused", path=str(self._path), uid=uid)
            return False
        self._connections.add(connection)
        self._all_gone.clear()
        return True

    def _forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_gone.set()

    async def _handle(self, request: Request) -> bytes:
        """The serialised answer to a request; raises an `OrlopError` with the code that the peer gets."""
        name = f"{request.service}/{request.method}"
        method = self._methods.get((request.service, request.method))
        if method is None:
            raise Unimplemented(f"method {name}" if request.service in self._services else f"service {request.service}")
        try:
            message = method.request_type.FromString(request.payload)
        except DecodeError as error:
            raise Internal(f"{name}: the payload is not a {method.request_type.DESCRIPTOR.full_name}: {error}") from error
        metadata = {pair.key: pair.value for pair in reversed(request.metadata)}
        seconds = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        try:
            async with asyncio.timeout(seconds) as scope:
                return (await method.handler(message, metadata)).SerializeToString()
        except TimeoutError as error:
            if scope.expired():
                raise DeadlineExceeded(f"{name} took longer than the caller's {seconds:g} s") from error
            raise

    def __repr__(self) -> str:
        return f"<ttrpc Server {self._path}: {len(self._connections)} connections>"


class _Connection(asyncio.Protocol):
    """One accepted connection. Its handlers are tasks of the server's supervisor and end with it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._core = ServerConnection()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport
        self._write_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server._admit(self, _peer_uid(transport.get_extra_info("socket"))):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        for event in self._core.receive_data(data):
            match event:
                case Call(stream_id, request):
                    task = self._server._supervisor.start(self._answer(stream_id, request), name=f"{request.service}/{request.method}")
                    self._tasks.add(task)
                    task.add_done_callback(self._ended)
                case Refusal(stream_id, error, frame):
                    _log.warning("ttrpc request refused", stream=stream_id, error=str(error))
                    self._transport.write(frame)
        self.update_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()
        self._server._forget(self)

    def pause_writing(self) -> None:
        self._write_paused = True
        self.update_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self.update_reading()

    def abort(self) -> None:
        self._transport.abort()

    def update_reading(self) -> None:
        """Read on only if the peer takes its answers, has not too many calls in flight, and the server isn't stopping."""
        if self._transport.is_closing():
            return
        if self._write_paused or self._core.outstanding >= _MAX_CALLS or self._server._stopping:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def _answer(self, stream_id: int, request: Request) -> None:
        try:
            frame = self._core.send_answer(stream_id, await self._server._handle(request))
        except OrlopError as error:
            frame = self._core.send_error(stream_id, error)
        except Exception as error:
            _log.exception("ttrpc handler failed", service=request.service, method=request.method, error=str(error))
            frame = self._core.send_error(stream_id, Internal(f"{request.service}/{request.method} failed: {error}"))
        if not self._transport.is_closing():
            self._transport.write(frame)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.update_reading()


def _bind(listening: socket.socket, path: Path) -> int:
    """Give the socket its name, and return the inode of that. Listening comes later, so nobody connects before the mode is right."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FailedPrecondition(f"{path} is in the way of the agent's event socket, and is not a socket; it was left as it is")
        path.unlink()
    try:
        listening.bind(os.fspath(path))
        path.chmod(0o600)
        return path.lstat().st_ino
    except OSError as error:
        raise Unavailable(f"can't listen at {path}: {error}") from error


def _unlink(path: Path, inode: int) -> None:
    """Remove our socket, unless a successor has put its own there."""
    with suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _peer_uid(peer: socket.socket) -> int:
    """The uid of the process that connected, as the kernel noted it (struct ucred: pid, uid, gid)."""
    layout = "iII"
    return int(struct.unpack(layout, peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(layout)))[1])
