"""One connection to the log copier: requests out, answers and events in. Used by `LogCopier` alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent import errdefs
from agent.logs import protocol

_LOST: protocol.Message = {}


class Connection:
    """Connects at once; afterwards everything is on the event loop and nothing blocks. `close()` it."""

    def __init__(self, path: Path, on_event: Callable[[protocol.Message], None]) -> None:
        """Connect to the copier's socket.

        Raises:
            OSError: ENOENT, ECONNREFUSED: no copier there. A full backlog is EAGAIN: there is one, and it doesn't answer.
        """
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._sequence = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[protocol.Message]] = {}
        self._sending = asyncio.Lock()
        self._gone = asyncio.Event()
        self._room = asyncio.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            error.filename = str(path)
            raise
        self._loop.add_reader(self._socket.fileno(), self._receive)

    @property
    def peer(self) -> int:
        """The pid of the process that listens (SO_PEERCRED, unix(7))."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    async def call(self, op: str, descriptors: Sequence[int] = (), **fields: Any) -> protocol.Message:
        """Send a request and wait for its answer.

        Raises:
            Closed: the connection was lost before the answer came; what the request asked may or may not be done.
            OrlopError: the copier's refusal.
        """
        sequence = next(self._sequence)
        answer = self._waiting[sequence] = self._loop.create_future()
        try:
            await self._send(protocol.encode({"seq": sequence, "op": op, **fields}), descriptors)
            message = await answer
        finally:
            self._waiting.pop(sequence, None)
        if message is _LOST:
            raise _closed()
        return protocol.check(message)

    async def wait_closed(self) -> None:
        """Return when the connection is lost, or was closed here."""
        await self._gone.wait()

    def close(self) -> None:
        """Fail what waits with Closed. The copier carries out what it has got."""
        if self._gone.is_set():
            return
        self._gone.set()
        self._room.set()
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(_LOST)

    async def _send(self, packet: bytes, descriptors: Sequence[int]) -> None:
        async with self._sending:
            while not self._gone.is_set():
                try:
                    socket.send_fds(self._socket, [packet], descriptors)
                    return
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                        break
                    raise
        self.close()
        raise _closed()

    async def _writable(self) -> None:
        self._room.clear()
        self._loop.add_writer(self._socket.fileno(), self._room.set)
        try:
            await self._room.wait()
        finally:
            if not self._gone.is_set():
                self._loop.remove_writer(self._socket.fileno())

    def _receive(self) -> None:
        try:
            packet = self._socket.recv(protocol.PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self.close()
            return
        message: protocol.Message = {}
        with contextlib.suppress(errdefs.Internal):
            message = protocol.decode(packet)
        if "event" in message:
            self._on_event(message)
        elif (answer := self._waiting.get(message.get("seq", 0))) is not None and not answer.done():
            answer.set_result(message)


def _closed() -> errdefs.Closed:
    return errdefs.Closed("the connection to the log copier is gone; it is started again")
