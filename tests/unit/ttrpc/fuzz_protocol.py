"""Fuzz target of the ttrpc cores: `one_input()` takes any bytes and checks what must hold for all of them.

`test_protocol.py` runs it under hypothesis. Where atheris is installed, `python -m tests.unit.ttrpc.fuzz_protocol [CORPUS...]` runs it
under libFuzzer.
"""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Iterator

from agent.api.request_pb2 import Request, Response
from agent.errdefs import OrlopError
from agent.ttrpc import protocol
from agent.ttrpc.protocol import Answer, Call, ClientConnection, Failure, Late, Refusal, ServerConnection, Stray

SMALL_LIMIT = 96
"""Stands in for the 4 MiB, so that over-long frames are cheap to make."""


def one_input(data: bytes) -> None:
    """The first byte says how long chunks are; the rest is what a peer sent."""
    size, stream = (data[0] or 256, data[1:]) if data else (1, b"")
    limit, protocol.MAX_LENGTH = protocol.MAX_LENGTH, SMALL_LIMIT
    try:
        assert _as_client([stream]) == _as_client(list(_chunks(stream, size)))
        assert _as_server([stream]) == _as_server(list(_chunks(stream, size)))
    finally:
        protocol.MAX_LENGTH = limit


def _chunks(stream: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(stream), size):
        yield stream[start : start + size]


def _as_client(chunks: list[bytes]) -> list[object]:
    """What a client with the streams 1 and 3 open and 5 abandoned makes of the chunks."""
    client = ClientConnection()
    for expected in (1, 3, 5):
        assert client.send_request(Request(service="s", method="m"))[0] == expected
    client.abandon(5)
    answered: list[int] = []
    seen: list[object] = []
    for chunk in chunks:
        for event in client.receive_data(chunk):
            match event:
                case Answer(stream_id, payload):
                    assert stream_id in (1, 3)
                    answered.append(stream_id)
                    seen.append((stream_id, payload))
                case Failure(stream_id, error):
                    assert stream_id in (1, 3)
                    answered.append(stream_id)
                    seen.append((stream_id, type(error), str(error)))
                case Late(stream_id):
                    assert stream_id == 5
                    answered.append(stream_id)
                    seen.append("late")
                case Stray(stream_id):
                    assert stream_id in answered or stream_id not in (1, 3, 5)
                    seen.append(("stray", stream_id))
    assert len(answered) == len(set(answered))
    assert client.outstanding == 3 - len(answered)
    return seen


def _as_server(chunks: list[bytes]) -> list[object]:
    """What a server makes of the chunks; every second call fails."""
    server = ServerConnection()
    last = 0
    seen: list[object] = []
    for chunk in chunks:
        for event in server.receive_data(chunk):
            match event:
                case Call(stream_id, request):
                    assert stream_id % 2 == 1
                    assert stream_id > last
                    last = stream_id
                    if stream_id % 4 == 1:
                        frame = server.send_answer(stream_id, request.payload)
                    else:
                        frame = server.send_error(stream_id, OrlopError(request.service))
                case Refusal(stream_id, error, frame):
                    last = max(last, stream_id) if stream_id % 2 else last
                    assert _response(frame, stream_id).status.code == error.code
            _response(frame, stream_id)
            seen.append(frame)
    assert server.outstanding == 0
    return seen


def _response(frame: bytes, stream_id: int) -> Response:
    length, stream, type_, flags = struct.unpack_from(">IIBB", frame)
    assert (length, stream, type_, flags) == (len(frame) - 10, stream_id, 2, 0)
    return Response.FromString(frame[10:])


def main() -> None:
    atheris = importlib.import_module("atheris")
    atheris.instrument_all()  # the cores are imported already
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
