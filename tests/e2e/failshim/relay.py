"""One connection of the agent to the failpoint shim, with one of its own to the real shim behind it: so that its end is felt there, too.

Frames are those of ttrpc: length, stream, type, flags, then a message. Requests get another stream number on their way, since one that
is held up must not come behind a higher one.
"""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import suppress
from pathlib import Path

from agent.api.request_pb2 import Request, Response
from agent.api.runtime.task.v3.shim_pb2 import ConnectResponse
from tests.e2e.failshim import overlays
from tests.e2e.failshim.faults import SLOW, Faults, crash

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_OK, _UNKNOWN, _NOT_FOUND = 0, 2, 5


class Relay:
    """Runs until one side closes its connection; then the other one is closed."""

    def __init__(self, home: Path, agent: Streams, behind: Streams) -> None:
        self._home = home
        self._faults = Faults(home)
        self._agent = agent
        self._behind = behind
        self._calls: dict[int, tuple[int, Request]] = {}
        """By the number of the stream behind: the agent's, and what it asked."""
        self._last = -1
        self._delayed: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        ways = [asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._answers())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for task in (*ways, *self._delayed):
            task.cancel()
        for _, writer in (self._agent, self._behind):
            writer.close()

    async def _requests(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                stream, kind, flags, payload = await _read(self._agent[0])
                if kind != _REQUEST:
                    continue
                request = Request.FromString(payload)
                match self._faults.at(request.method, "error", "missing", "lies", "mute", "slow", "crash", "garbage"):
                    case "error":
                        self._answer(stream, _UNKNOWN, f"{request.method} fails, as it was told to")
                    case "missing":
                        self._answer(stream, _NOT_FOUND, "container not created: not found")
                    case "lies":
                        self._answer(stream, _OK, "")
                    case "garbage":
                        _write(self._agent[1], stream, _RESPONSE, 0, b"\xff\xff\xff")
                    case "mute":
                        pass
                    case "crash":
                        crash()
                    case "slow":
                        self._delayed.add(asyncio.create_task(self._later(stream, flags, request)))
                    case _:
                        self._forward(stream, flags, request)

    async def _later(self, stream: int, flags: int, request: Request) -> None:
        await asyncio.sleep(SLOW)
        self._forward(stream, flags, request)

    def _forward(self, stream: int, flags: int, request: Request) -> None:
        if request.method == "Delete" and not self._faults.at("Delete", "keeps"):
            overlays.take_away(self._home, _id_of(request))
        self._last += 2
        self._calls[self._last] = stream, request
        _write(self._behind[1], self._last, _REQUEST, flags, request.SerializeToString())

    async def _answers(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                number, kind, flags, payload = await _read(self._behind[0])
                stream, request = self._calls.pop(number)
                match self._faults.at(request.method, "mute-after", "crash-after", "overlay"):
                    case "mute-after":
                        continue
                    case "crash-after":
                        crash()
                    case "overlay" if not Response.FromString(payload).status.code:
                        overlays.put_over(self._home, _id_of(request))
                if request.method == "Connect":
                    payload = _as_our_own(payload)
                _write(self._agent[1], stream, kind, flags, payload)

    def _answer(self, stream: int, code: int, message: str) -> None:
        response = Response()
        if code:
            response.status.code, response.status.message = code, message
        _write(self._agent[1], stream, _RESPONSE, 0, response.SerializeToString())


def _id_of(request: Request) -> str:
    """The container's: in every request of the task service it is the first field."""
    payload = request.payload
    return payload[2 : 2 + payload[1]].decode()


def _as_our_own(payload: bytes) -> bytes:
    """Connect tells the pid of the shim: to the agent that is us."""
    response = Response.FromString(payload)
    if not response.status.code:
        answer = ConnectResponse.FromString(response.payload)
        answer.shim_pid = os.getpid()
        response.payload = answer.SerializeToString()
    return response.SerializeToString()


async def _read(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    length, stream, kind, flags = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    return stream, kind, flags, await reader.readexactly(length)


def _write(writer: asyncio.StreamWriter, stream: int, kind: int, flags: int, payload: bytes) -> None:
    writer.write(_HEADER.pack(len(payload), stream, kind, flags) + payload)
