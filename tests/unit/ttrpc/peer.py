"""The other end of a real unix socket, driven frame by frame by a test."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from agent.api.request_pb2 import Request, Response


def frame(stream_id: int, type_: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack(">IIBB", len(payload) if length is None else length, stream_id, type_, 0) + payload


def answer(stream_id: int, message: Message) -> bytes:
    return frame(stream_id, 2, Response(payload=message.SerializeToString()).SerializeToString())


def error(stream_id: int, code: int, text: str) -> bytes:
    return frame(stream_id, 2, Response(status=Status(code=code, message=text)).SerializeToString())


class Peer:
    """A connected socket. Reads nothing by itself, so that a test decides what stays unread."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self.socket = connected

    @classmethod
    async def dial(cls, path: Path) -> Peer:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connecting.connect(str(path))
        except BaseException:
            connecting.close()
            raise
        return cls(connecting)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self) -> tuple[int, int, bytes]:
        """The next frame: stream id, type, payload."""
        length, stream_id, type_, _ = struct.unpack(">IIBB", await self._exactly(10))
        return stream_id, type_, await self._exactly(length)

    async def request(self) -> tuple[int, Request]:
        stream_id, type_, payload = await self.receive()
        assert type_ == 1
        return stream_id, Request.FromString(payload)

    async def response(self) -> tuple[int, Response]:
        stream_id, type_, payload = await self.receive()
        assert type_ == 2
        return stream_id, Response.FromString(payload)

    async def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = await asyncio.get_running_loop().sock_recv(self.socket, length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    async def wait_ended(self) -> None:
        """Return when the other side has closed; what it sent before is skipped."""
        with suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16):
                pass

    def close(self) -> None:
        self.socket.close()


class Listener:
    """A listening socket at `path`."""

    def __init__(self, path: Path | str, *, backlog: int = 8) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.bind(str(path))
        self.socket.listen(backlog)

    async def accept(self) -> Peer:
        accepted, _ = await asyncio.get_running_loop().sock_accept(self.socket)
        return Peer(accepted)

    def close(self) -> None:
        self.socket.close()


@asynccontextmanager
async def listening(path: Path | str, *, backlog: int = 8) -> AsyncIterator[Listener]:
    listener = Listener(path, backlog=backlog)
    try:
        yield listener
    finally:
        listener.close()
