"""The wire rules of ttrpc, without I/O: bytes in, events out; messages in, bytes out.

`client.py` and `server.py` put sockets around the two roles; the tests run the roles against each other in memory, and fuzz them.
The rules are runtime-v2.md section 3. A frame is

    length u32 | stream id u32 | type u8 | flags u8 | payload of `length` bytes        (big-endian)

Nothing that a peer sends makes a core raise: what is wrong with one frame concerns the stream of that frame alone, and the next
frame begins `length` bytes further on. Frames of another type than the role waits for (data frames of streaming methods, which the
agent neither calls nor serves, and unknown types) are dropped without an answer.

A stream in the client role lives like this; a server knows only "called" and "answered":

    send_request() -> OPEN ------- answer arrives ------> gone     Answer, or Failure
                       |
                   abandon() -> ABANDONED -- answer -----> gone     Late
                                  an answer to any other stream     Stray
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from agent.api.request_pb2 import Request, Response
from agent.errdefs import Code, Internal, InvalidArgument, OrlopError, ResourceExhausted, from_code

MAX_LENGTH = 4 << 20
"""Longest payload, in bytes. A longer one is discarded by every peer, so it is never sent."""
MAX_STREAM_ID = 0xFFFF_FFFF

_HEADER = struct.Struct(">IIBB")
_MAX_ERROR_TEXT = 4096  # characters: an error may quote the peer's 4 MiB request, and its answer has to fit into a frame


class FrameType(enum.IntEnum):
    REQUEST = 1
    RESPONSE = 2
    DATA = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as received. `type` is a plain number, since peers may send any."""

    stream_id: int
    type: int
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Overlong:
    """A frame of more than `MAX_LENGTH` bytes that was received in full, and thrown away."""

    stream_id: int
    type: int
    length: int


def encode(type: FrameType, stream_id: int, payload: bytes) -> bytes:  # noqa: A002 (the wire's own word)
    """The bytes of a frame without flags, as all unary calls are. The caller has checked the length."""
    return b"".join((_HEADER.pack(len(payload), stream_id, type, 0), payload))


class FrameReader:
    """Cuts a byte stream into frames, whatever its chunks. Holds at most one unfinished frame of `MAX_LENGTH`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._overlong: Overlong | None = None
        self._to_discard = 0

    @property
    def midway(self) -> bool:
        """Whether an end of the stream, now, would cut a frame in two."""
        return bool(self._buffer) or self._overlong is not None

    def feed(self, data: bytes) -> list[Frame | Overlong]:
        """The frames that `data` completes, in order."""
        frames: list[Frame | Overlong] = []
        buffer = self._buffer
        buffer += data
        start = 0
        while True:
            available = len(buffer) - start
            if self._overlong is not None:
                discarded = min(available, self._to_discard)
                start += discarded
                self._to_discard -= discarded
                if self._to_discard:
                    break
                frames.append(self._overlong)
                self._overlong = None
                continue
            if available < _HEADER.size:
                break
            length, stream_id, type_, flags = _HEADER.unpack_from(buffer, start)
            if length > MAX_LENGTH:
                self._overlong = Overlong(stream_id, type_, length)
                self._to_discard = length
                start += _HEADER.size
                continue
            if available < _HEADER.size + length:
                break
            begin = start + _HEADER.size
            start = begin + length
            frames.append(Frame(stream_id, type_, flags, bytes(buffer[begin:start])))
        del buffer[:start]
        return frames


class Stream(enum.Enum):
    """Where a call stands, as the client sees it; the diagram is at the top of this file."""

    OPEN = enum.auto()
    ABANDONED = enum.auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """A call succeeded; `payload` is the serialised answer, empty for an empty message."""

    stream_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """A call failed: with the status that the peer gave, or since its answer was unreadable."""

    stream_id: int
    error: OrlopError


@dataclass(frozen=True, slots=True)
class Late:
    """The answer to a call that was abandoned, and that is thereby over at the peer's side as well."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Stray:
    """An answer to a stream that was never opened, or was answered before."""

    stream_id: int


ClientEvent = Answer | Failure | Late | Stray


class ClientConnection:
    """The client role on one connection."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._next_id = 1
        self._streams: dict[int, Stream] = {}

    @property
    def midway(self) -> bool:
        """Whether an end of the stream, now, would be a short read."""
        return self._reader.midway

    @property
    def outstanding(self) -> int:
        """How many calls the peer is still working on, abandoned ones included."""
        return len(self._streams)

    def send_request(self, request: Request) -> tuple[int, bytes]:
        """Open a stream: its id, and the frame to write. Frames must be written in the order in which this was called.

        Raises:
            ResourceExhausted: The request is longer than a frame may be, or the connection has used up its ids. No id is taken.
        """
        payload = request.SerializeToString()
        if len(payload) > MAX_LENGTH:
            raise ResourceExhausted(
                f"{request.service}/{request.method}: a request of {len(payload)} bytes; ttrpc carries {MAX_LENGTH}, so it was not sent"
            )
        stream_id = self._next_id
        if stream_id > MAX_STREAM_ID:
            raise ResourceExhausted(f"{request.service}/{request.method}: all stream ids of this connection are used up; dial again")
        self._next_id += 2
        self._streams[stream_id] = Stream.OPEN
        return stream_id, encode(FrameType.REQUEST, stream_id, payload)

    def abandon(self, stream_id: int) -> None:
        """Nobody waits for the answer any more. ttrpc can't tell the peer; the answer will be `Late`. Answered already: a no-op."""
        if stream_id in self._streams:
            self._streams[stream_id] = Stream.ABANDONED

    def receive_data(self, data: bytes) -> list[ClientEvent]:
        """What the received bytes mean, in order."""
        events: list[ClientEvent] = []
        for frame in self._reader.feed(data):
            if frame.type != FrameType.RESPONSE:
                continue
            match self._streams.pop(frame.stream_id, None):
                case Stream.OPEN:
                    events.append(_outcome(frame))
                case Stream.ABANDONED:
                    events.append(Late(frame.stream_id))
                case None:
                    events.append(Stray(frame.stream_id))
        return events


def _outcome(frame: Frame | Overlong) -> Answer | Failure:
    if isinstance(frame, Overlong):
        return Failure(frame.stream_id, ResourceExhausted(f"the peer answered with {frame.length} bytes; ttrpc carries {MAX_LENGTH}"))
    try:
        response = Response.FromString(frame.payload)
    except DecodeError as error:
        return Failure(frame.stream_id, Internal(f"the peer's answer of {len(frame.payload)} bytes is not a ttrpc response: {error}"))
    if response.status.code != Code.OK:
        return Failure(frame.stream_id, from_code(response.status.code, response.status.message))
    return Answer(frame.stream_id, response.payload)


@dataclass(frozen=True, slots=True)
class Call:
    """A peer calls. It gets one answer, by `send_answer` or `send_error`."""

    stream_id: int
    request: Request


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that breaks the rules of the wire. `frame` tells the peer so; it is all that has to be done."""

    stream_id: int
    error: OrlopError
    frame: bytes


ServerEvent = Call | Refusal


class ServerConnection:
    """The server role on one connection."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._last_id = 0
        self._calls: set[int] = set()

    @property
    def outstanding(self) -> int:
        """How many calls have not been answered yet."""
        return len(self._calls)

    def receive_data(self, data: bytes) -> list[ServerEvent]:
        """What the received bytes ask for, in order."""
        return [self._accept(frame) for frame in self._reader.feed(data) if frame.type == FrameType.REQUEST]

    def send_answer(self, stream_id: int, payload: bytes) -> bytes:
        """The frame of a successful answer; if it doesn't fit into one, that of an error which says so.

        Raises:
            Internal: The stream was answered before, or never called.
        """
        self._finish(stream_id)
        body = Response(payload=payload).SerializeToString()
        if len(body) > MAX_LENGTH:
            return _error_frame(stream_id, ResourceExhausted(f"an answer of {len(body)} bytes; ttrpc carries {MAX_LENGTH}"))
        return encode(FrameType.RESPONSE, stream_id, body)

    def send_error(self, stream_id: int, error: OrlopError) -> bytes:
        """The frame of a failed call.

        Raises:
            Internal: The stream was answered before, or never called.
        """
        self._finish(stream_id)
        return _error_frame(stream_id, error)

    def _finish(self, stream_id: int) -> None:
        if stream_id not in self._calls:
            raise Internal(f"ttrpc stream {stream_id} has no call to answer")
        self._calls.remove(stream_id)

    def _accept(self, frame: Frame | Overlong) -> ServerEvent:
        stream_id = frame.stream_id
        try:
            if stream_id % 2 == 0:
                raise InvalidArgument(f"stream id {stream_id} is even; a client's are odd")
            if stream_id <= self._last_id:
                raise InvalidArgument(f"stream id {stream_id} after {self._last_id}; ids must increase")
            self._last_id = stream_id
            if isinstance(frame, Overlong):
                raise ResourceExhausted(f"a request of {frame.length} bytes; ttrpc carries {MAX_LENGTH}")
            request = Request.FromString(frame.payload)
        except DecodeError as error:
            return _refuse(stream_id, InvalidArgument(f"not a ttrpc request: {error}"))
        except OrlopError as error:
            return _refuse(stream_id, error)
        self._calls.add(stream_id)
        return Call(stream_id, request)


def _refuse(stream_id: int, error: OrlopError) -> Refusal:
    return Refusal(stream_id, error, _error_frame(stream_id, error))


def _error_frame(stream_id: int, error: OrlopError) -> bytes:
    # File names in errors can hold surrogates, which protobuf refuses.
    text = str(error)[:_MAX_ERROR_TEXT].encode(errors="replace").decode()
    return encode(FrameType.RESPONSE, stream_id, Response(status=Status(code=error.code, message=text)).SerializeToString())
