"""The cores: frames under any chunking, the rules of streams, both roles against each other in memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import cast

import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.api.request_pb2 import KeyValue, Request, Response
from agent.errdefs import Code, DeadlineExceeded, Internal, InvalidArgument, NotFound, OrlopError, ResourceExhausted, Unknown
from agent.ttrpc.protocol import (
    MAX_LENGTH,
    MAX_STREAM_ID,
    Answer,
    Call,
    ClientConnection,
    Failure,
    Frame,
    FrameReader,
    FrameType,
    Late,
    Overlong,
    Refusal,
    ServerConnection,
    Stray,
    encode,
)
from tests.unit.ttrpc.fuzz_protocol import SMALL_LIMIT, one_input


def wire(stream_id: int, type_: int, payload: bytes = b"", *, flags: int = 0, length: int | None = None) -> bytes:
    """A frame, written without the code under test."""
    return struct.pack(">IIBB", len(payload) if length is None else length, stream_id, type_, flags) + payload


def response(stream_id: int, payload: bytes = b"", status: Status | None = None) -> bytes:
    return wire(stream_id, 2, Response(payload=payload, status=status).SerializeToString())


def request(stream_id: int, payload: bytes = b"") -> bytes:
    return wire(stream_id, 1, Request(service="s", method="m", payload=payload).SerializeToString())


frames = st.builds(
    Frame,
    stream_id=st.integers(0, MAX_STREAM_ID),
    type=st.integers(0, 255),
    flags=st.integers(0, 255),
    payload=st.binary(max_size=60),
)


@st.composite
def chunked(draw: st.DrawFn, stream: st.SearchStrategy[bytes]) -> list[bytes]:
    data = draw(stream)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# Frames.


@given(st.lists(frames, max_size=8), st.data())
@settings(deadline=None)
def test_any_chunking_of_any_frames_gives_the_same_frames(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(wire(frame.stream_id, frame.type, frame.payload, flags=frame.flags) for frame in sent)
    reader = FrameReader()
    received = [frame for chunk in data.draw(chunked(st.just(stream))) for frame in reader.feed(chunk)]
    assert received == sent
    assert not reader.midway


@given(st.lists(frames, min_size=1, max_size=4), st.data())
@settings(deadline=None)
def test_a_cut_stream_is_midway_exactly_between_two_ends_of_frames(sent: list[Frame], data: st.DataObject) -> None:
    parts = [wire(frame.stream_id, frame.type, frame.payload, flags=frame.flags) for frame in sent]
    ends = {sum(map(len, parts[:count])) for count in range(len(parts) + 1)}
    cut = data.draw(st.integers(0, max(ends)))
    reader = FrameReader()
    received = reader.feed(b"".join(parts)[:cut])
    assert received == sent[: len(received)]
    assert reader.midway == (cut not in ends)


@given(st.integers(0, MAX_STREAM_ID), st.sampled_from(FrameType), st.binary(max_size=100))
def test_encode_is_what_the_reader_reads(stream_id: int, kind: FrameType, payload: bytes) -> None:
    assert encode(kind, stream_id, payload) == wire(stream_id, kind, payload)
    assert FrameReader().feed(encode(kind, stream_id, payload)) == [Frame(stream_id, kind, 0, payload)]


def test_an_overlong_frame_is_discarded_without_being_kept() -> None:
    reader = FrameReader()
    assert reader.feed(wire(7, 2, length=MAX_LENGTH + 1)) == []
    for _ in range(4):
        assert reader.feed(bytes(MAX_LENGTH // 4)) == []
        assert len(reader._buffer) == 0
    assert reader.midway
    assert reader.feed(b"\0" + wire(9, 2, b"next")) == [Overlong(7, 2, MAX_LENGTH + 1), Frame(9, 2, 0, b"next")]
    assert not reader.midway


def test_the_longest_frame_passes() -> None:
    payload = bytes(MAX_LENGTH)
    assert FrameReader().feed(wire(1, 1, payload)) == [Frame(1, 1, 0, payload)]


# The client role.


def opened(count: int) -> ClientConnection:
    client = ClientConnection()
    for _ in range(count):
        client.send_request(Request(service="s", method="m"))
    return client


def test_client_ids_are_odd_and_increase() -> None:
    client = ClientConnection()
    assert [client.send_request(Request(service="s", method="m"))[0] for _ in range(4)] == [1, 3, 5, 7]


def test_a_request_frame_is_plain_unary() -> None:
    message = Request(service="s", method="m", payload=b"p", timeout_nano=5, metadata=[KeyValue(key="k", value="v")])
    assert ClientConnection().send_request(message) == (1, wire(1, 1, message.SerializeToString()))


def test_a_request_that_fits_no_frame_takes_no_id() -> None:
    client = ClientConnection()
    overhead = Request(payload=bytes(MAX_LENGTH)).ByteSize() - MAX_LENGTH
    with pytest.raises(ResourceExhausted, match="4194305 bytes"):
        client.send_request(Request(payload=bytes(MAX_LENGTH - overhead + 1)))
    stream_id, frame = client.send_request(Request(payload=bytes(MAX_LENGTH - overhead)))
    assert (stream_id, len(frame)) == (1, MAX_LENGTH + 10)


def test_ids_that_are_used_up_are_an_error_not_a_wrap() -> None:
    client = ClientConnection()
    client._next_id = MAX_STREAM_ID
    assert client.send_request(Request())[0] == MAX_STREAM_ID
    with pytest.raises(ResourceExhausted, match="dial again"):
        client.send_request(Request())


@pytest.mark.field_fault("11")
@pytest.mark.parametrize("state", ["open", "abandoned", "answered", "never opened", "even", "zero"])
@pytest.mark.parametrize("kind", ["response", "empty", "overlong", "data", "request", "unknown"])
def test_every_frame_in_every_state_of_a_stream(state: str, kind: str) -> None:
    client = opened(3)
    client.abandon(3)
    client.receive_data(response(5))
    stream_id = {"open": 1, "abandoned": 3, "answered": 5, "never opened": 7, "even": 2, "zero": 0}[state]
    data = {
        "response": response(stream_id, b"x"),
        "empty": wire(stream_id, 2),
        "overlong": wire(stream_id, 2, bytes(MAX_LENGTH + 1)),
        "data": wire(stream_id, 3, b"x", flags=1),
        "request": request(stream_id),
        "unknown": wire(stream_id, 77, b"x"),
    }[kind]
    events = client.receive_data(data)
    if kind in ("data", "request", "unknown"):
        assert events == []
        assert client.outstanding == 2
    elif state == "abandoned":
        assert events == [Late(3)]
    elif state != "open":
        assert events == [Stray(stream_id)]
    elif kind == "overlong":
        (event,) = events
        assert isinstance(event, Failure)
        assert isinstance(event.error, ResourceExhausted)
    else:
        assert events == [Answer(1, b"x" if kind == "response" else b"")]


@pytest.mark.parametrize(
    ("code", "expected"),
    [(3, InvalidArgument), (4, DeadlineExceeded), (5, NotFound), (13, Internal), (2, Unknown), (99, Unknown), (-1, Unknown)],
)
def test_a_status_becomes_the_error_of_its_class_with_the_peers_text(code: int, expected: type[OrlopError]) -> None:
    (event,) = opened(1).receive_data(response(1, status=Status(code=code, message="container not created: not found")))
    assert isinstance(event, Failure)
    assert type(event.error) is expected
    assert str(event.error) == "container not created: not found"


def test_a_status_of_ok_is_a_success() -> None:
    assert opened(1).receive_data(response(1, b"x", Status(code=0))) == [Answer(1, b"x")]


def test_an_unreadable_answer_fails_its_own_call() -> None:
    first, second = opened(2).receive_data(wire(1, 2, b"\xff\xff") + response(3, b"x"))
    assert isinstance(first, Failure)
    assert type(first.error) is Internal
    assert second == Answer(3, b"x")


def test_abandoning_an_answered_stream_changes_nothing() -> None:
    client = opened(1)
    client.receive_data(response(1))
    client.abandon(1)
    assert client.outstanding == 0
    assert client.receive_data(response(1)) == [Stray(1)]


# The server role.


def code_of(event: object) -> int:
    assert isinstance(event, Refusal)
    (frame,) = FrameReader().feed(event.frame)
    assert isinstance(frame, Frame)
    assert (frame.stream_id, frame.type) == (event.stream_id, 2)
    return cast(int, Response.FromString(frame.payload).status.code)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(request(2), Code.INVALID_ARGUMENT, id="even"),
        pytest.param(request(0), Code.INVALID_ARGUMENT, id="zero"),
        pytest.param(request(5), Code.INVALID_ARGUMENT, id="used"),
        pytest.param(request(3), Code.INVALID_ARGUMENT, id="lower"),
        pytest.param(wire(7, 1, b"\xff\xff"), Code.INVALID_ARGUMENT, id="unparsable"),
        pytest.param(wire(7, 1, bytes(MAX_LENGTH + 1)), Code.RESOURCE_EXHAUSTED, id="overlong"),
    ],
)
def test_a_bad_request_is_refused_with_its_code_and_the_next_one_accepted(data: bytes, code: Code) -> None:
    server = ServerConnection()
    server.receive_data(request(5))
    refusal, call = server.receive_data(data + request(9))
    assert code_of(refusal) == code
    assert isinstance(call, Call)
    assert call.stream_id == 9
    assert server.outstanding == 2


@pytest.mark.parametrize("type_", [0, 2, 3, 4, 255])
def test_frames_that_are_no_requests_are_ignored(type_: int) -> None:
    server = ServerConnection()
    assert server.receive_data(wire(1, type_, b"x") + wire(3, type_, bytes(MAX_LENGTH + 1))) == []
    assert len(server.receive_data(request(1))) == 1


def test_a_call_is_answered_once() -> None:
    server = ServerConnection()
    server.receive_data(request(1))
    server.send_answer(1, b"")
    answers: list[Callable[[], bytes]] = [lambda: server.send_answer(1, b""), lambda: server.send_error(1, NotFound("x"))]
    for answer in answers:
        with pytest.raises(Internal, match="stream 1 has no call"):
            answer()


def test_an_answer_that_fits_no_frame_becomes_an_error() -> None:
    client, server = opened(1), ServerConnection()
    server.receive_data(request(1))
    (event,) = client.receive_data(server.send_answer(1, bytes(MAX_LENGTH)))
    assert isinstance(event, Failure)
    assert isinstance(event.error, ResourceExhausted)


def test_an_error_text_fits_a_frame_and_is_valid_whatever_it_quotes() -> None:
    client, server = opened(1), ServerConnection()
    server.receive_data(request(1))
    frame = server.send_error(1, NotFound("\udcff" + "x" * MAX_LENGTH))
    (event,) = client.receive_data(frame)
    assert isinstance(event, Failure)
    assert str(event.error).startswith("?xxx")
    assert len(frame) < 5000


# Both roles.


class ConnectionPair:
    """A client and a server core with nothing but chunks of bytes between them."""

    def __init__(self, chunk: int) -> None:
        self.client = ClientConnection()
        self.server = ServerConnection()
        self._chunk = chunk

    def to_server(self, data: bytes) -> list[Call]:
        events = [event for part in self._parts(data) for event in self.server.receive_data(part)]
        calls = [event for event in events if isinstance(event, Call)]
        assert calls == events
        return calls

    def to_client(self, data: bytes) -> list[object]:
        return [event for part in self._parts(data) for event in self.client.receive_data(part)]

    def _parts(self, data: bytes) -> list[bytes]:
        return [data[start : start + self._chunk] for start in range(0, len(data), self._chunk)]


requests = st.builds(
    Request,
    service=st.text(max_size=20),
    method=st.text(max_size=20),
    payload=st.binary(max_size=100),
    timeout_nano=st.integers(0, 2**63 - 1),
    metadata=st.lists(st.builds(KeyValue, key=st.text(max_size=5), value=st.text(max_size=5)), max_size=3),
)


@given(st.lists(requests, max_size=8), st.integers(1, 50), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_calls_and_answers_in_any_order_find_each_other(sent: list[Request], chunk: int, random: object) -> None:
    pair = ConnectionPair(chunk)
    outgoing = [pair.client.send_request(message) for message in sent]
    calls = pair.to_server(b"".join(frame for _, frame in outgoing))
    assert [(call.stream_id, call.request) for call in calls] == [
        (stream_id, message) for (stream_id, _), message in zip(outgoing, sent, strict=True)
    ]
    random.shuffle(calls)  # type: ignore[attr-defined]  # hypothesis has no public type for it
    events = pair.to_client(b"".join(pair.server.send_answer(call.stream_id, call.request.payload) for call in calls))
    assert events == [Answer(call.stream_id, call.request.payload) for call in calls]
    assert pair.client.outstanding == pair.server.outstanding == 0


def test_errors_cross_the_pair() -> None:
    pair = ConnectionPair(3)
    stream_id, frame = pair.client.send_request(Request(service="s", method="m"))
    pair.to_server(frame)
    (event,) = pair.to_client(pair.server.send_error(stream_id, NotFound("no such task")))
    assert isinstance(event, Failure)
    assert isinstance(event.error, NotFound)
    assert str(event.error) == "no such task"


# Anything at all.

parts = st.one_of(
    st.binary(max_size=30),
    st.builds(wire, st.integers(0, 9), st.integers(0, 4), st.binary(max_size=SMALL_LIMIT + 20), flags=st.integers(0, 7)),
    st.builds(request, st.integers(0, 9), st.binary(max_size=SMALL_LIMIT)),
    st.builds(response, st.integers(0, 9), st.binary(max_size=SMALL_LIMIT)),
    st.builds(response, st.integers(0, 9), status=st.builds(Status, code=st.integers(-5, 30), message=st.text(max_size=20))),
)


@pytest.mark.field_fault("11")
@given(st.builds(lambda size, stream: bytes([size]) + b"".join(stream), st.integers(0, 255), st.lists(parts, max_size=10)))
@settings(deadline=None, max_examples=300)
def test_fuzz(data: bytes) -> None:
    one_input(data)
