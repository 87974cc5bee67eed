"""The server on real unix sockets, first against hand-made frames, then against our own client."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from agent import failpoints
from agent.aio import Supervisor
from agent.api.request_pb2 import KeyValue, Request
from agent.api.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from agent.api.types.event_pb2 import Envelope
from agent.errdefs import (
    AlreadyExists,
    Closed,
    Code,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from agent.ttrpc import Client, Metadata, Server
from agent.ttrpc.protocol import MAX_LENGTH
from tests.unit.ttrpc.peer import Listener, Peer, frame

EVENTS = "containerd.services.events.ttrpc.v1.Events"


@dataclass
class Forward:
    """The handler: keeps what it got; what it does with an event, its topic says."""

    received: list[tuple[ForwardRequest, Metadata]] = field(default_factory=list)
    running: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    most_running: int = 0
    now_running: int = 0

    async def __call__(self, request: ForwardRequest, metadata: Metadata) -> Message:
        self.received.append((request, metadata))
        match request.envelope.topic:
            case "fail":
                raise AlreadyExists("had that event")
            case "crash":
                raise RuntimeError("a bug")
            case "own timeout":
                raise TimeoutError("of something else")
            case "large":
                return Any(value=bytes(MAX_LENGTH))
            case "wait":
                await self._wait()
        return Empty()

    async def _wait(self) -> None:
        self.now_running += 1
        self.most_running = max(self.most_running, self.now_running)
        self.running.release()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.now_running -= 1


@dataclass
class Served:
    server: Server
    path: Path
    forward: Forward


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    server, forward = Server(), Forward()
    server.register(EVENTS, "Forward", ForwardRequest, forward)
    await server.serve(tmp_path / "events.ttrpc")
    yield Served(server, tmp_path / "events.ttrpc", forward)
    await server.stop(0)


@pytest.fixture
async def peer(served: Served) -> AsyncIterator[Peer]:
    dialled = await Peer.dial(served.path)
    yield dialled
    dialled.close()


@pytest.fixture
async def client(served: Served) -> AsyncIterator[Client]:
    supervisor = Supervisor("test")
    connected = await Client.connect(f"unix://{served.path}", supervisor=supervisor)
    yield connected
    connected.close()
    await connected.wait_closed()


def forward(stream_id: int, topic: str = "/tasks/exit", *, timeout_nano: int = 0, metadata: tuple[KeyValue, ...] = ()) -> bytes:
    payload = ForwardRequest(envelope=Envelope(topic=topic)).SerializeToString()
    request = Request(service=EVENTS, method="Forward", payload=payload, timeout_nano=timeout_nano, metadata=metadata)
    return frame(stream_id, 1, request.SerializeToString())


def request(stream_id: int, service: str, method: str, payload: bytes = b"") -> bytes:
    return frame(stream_id, 1, Request(service=service, method=method, payload=payload).SerializeToString())


async def call(client: Client, topic: str, *, timeout: float | None = None) -> Empty:
    return await client.call(EVENTS, "Forward", ForwardRequest(envelope=Envelope(topic=topic)), Empty, timeout=timeout)


async def turns(count: int) -> None:
    """Let the loop go round, so that a transport could read `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


# Requests.


async def test_an_event_is_answered_when_its_handler_returned(served: Served, peer: Peer) -> None:
    pairs = (KeyValue(key="containerd-namespace-ttrpc", value="k8s.io"), KeyValue(key="containerd-namespace-ttrpc", value="other"))
    await peer.send(forward(1, metadata=pairs))
    stream_id, response = await peer.response()
    assert (stream_id, response.HasField("status"), response.payload) == (1, False, b"")
    ((received, metadata),) = served.forward.received
    assert received.envelope.topic == "/tasks/exit"
    assert metadata == {"containerd-namespace-ttrpc": "k8s.io"}


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        pytest.param(forward(2), Code.INVALID_ARGUMENT, "is even", id="even id"),
        pytest.param(forward(1), Code.INVALID_ARGUMENT, "must increase", id="used id"),
        pytest.param(frame(3, 1, b"\xff"), Code.INVALID_ARGUMENT, "not a ttrpc request", id="unparsable request"),
        pytest.param(frame(3, 1, bytes(MAX_LENGTH + 1)), Code.RESOURCE_EXHAUSTED, "4194305 bytes", id="overlong"),
        pytest.param(request(3, "no.such.Service", "Forward"), Code.UNIMPLEMENTED, "service no.such.Service", id="unknown service"),
        pytest.param(request(3, EVENTS, "Backward"), Code.UNIMPLEMENTED, "method .*Events/Backward", id="unknown method"),
        pytest.param(request(3, EVENTS, "Forward", b"\xff"), Code.INTERNAL, "not a containerd.*ForwardRequest", id="unparsable payload"),
        pytest.param(forward(3, "fail"), Code.ALREADY_EXISTS, "had that event", id="handler's error"),
        pytest.param(forward(3, "crash"), Code.INTERNAL, "a bug", id="handler's bug"),
        pytest.param(forward(3, "own timeout", timeout_nano=10**10), Code.INTERNAL, "of something else", id="handler's own timeout"),
        pytest.param(forward(3, "wait", timeout_nano=1000), Code.DEADLINE_EXCEEDED, "took longer", id="caller's timeout"),
        pytest.param(forward(3, "large"), Code.RESOURCE_EXHAUSTED, "ttrpc carries 4194304", id="overlong answer"),
    ],
)
async def test_what_goes_wrong_has_its_code_and_the_connection_goes_on(peer: Peer, data: bytes, code: Code, text: str) -> None:
    await peer.send(forward(1))
    await peer.response()
    await peer.send(data)
    stream_id, response = await peer.response()
    assert stream_id == struct.unpack_from(">I", data, 4)[0]
    assert response.status.code == code
    assert re.search(text, response.status.message)
    await peer.send(forward(5))
    assert (await peer.response())[0] == 5


@pytest.mark.parametrize("type_", [0, 2, 3, 9])
async def test_other_frames_get_no_answer(peer: Peer, type_: int) -> None:
    await peer.send(frame(1, type_, b"x") + forward(3))
    assert (await peer.response())[0] == 3


async def test_a_slow_handler_holds_up_no_other_call(served: Served, peer: Peer) -> None:
    await peer.send(forward(1, "wait") + forward(3))
    assert (await peer.response())[0] == 3
    served.forward.may_end.set()
    assert (await peer.response())[0] == 1


async def test_a_peer_with_many_calls_in_flight_is_not_read_further(served: Served) -> None:
    dialled = await Peer.dial(served.path)
    count = 10_000  # more than one read of the transport
    sending = asyncio.create_task(dialled.send(b"".join(forward(number, "wait") for number in range(1, 2 * count, 2))))
    await served.forward.running.acquire()
    await turns(200)
    assert not sending.done()
    assert served.forward.most_running < count
    served.forward.may_end.set()
    assert sorted([(await dialled.response())[0] for _ in range(count)]) == list(range(1, 2 * count, 2))
    await sending
    dialled.close()


async def test_a_peer_that_takes_no_answers_is_not_read_further(served: Served) -> None:
    dialled = await Peer.dial(served.path)
    text = request(1, "x" * 4000, "m")[10:]
    count = 5000
    requests = b"".join(struct.pack(">IIBB", len(text), number, 1, 0) + text for number in range(1, 2 * count, 2))
    sending = asyncio.create_task(dialled.send(requests))
    while not served.server._connections:
        await turns(1)
    (connection,) = served.server._connections
    while not connection._write_paused:
        await turns(1)
    await turns(200)
    assert not sending.done()
    assert connection._transport.get_write_buffer_size() < 1 << 20
    assert [(await dialled.response())[0] for _ in range(count)] == list(range(1, 2 * count, 2))
    await sending
    dialled.close()


# Connections.


async def test_another_users_process_is_refused(tmp_path: Path) -> None:
    server, handler = Server(uid=os.geteuid() + 1), Forward()
    server.register(EVENTS, "Forward", ForwardRequest, handler)
    await server.serve(tmp_path / "s")
    dialled = await Peer.dial(tmp_path / "s")
    await dialled.send(forward(1))
    await dialled.wait_ended()
    assert handler.received == []
    dialled.close()
    await server.stop()


async def test_the_end_of_a_connection_ends_its_handlers_and_no_others(served: Served, peer: Peer) -> None:
    other = await Peer.dial(served.path)
    await other.send(forward(1, "wait"))
    await peer.send(forward(1, "wait"))
    await served.forward.running.acquire()
    await served.forward.running.acquire()
    other.close()
    await served.forward.cancelled.wait()
    assert served.forward.now_running == 1
    served.forward.may_end.set()
    assert (await peer.response())[0] == 1


async def test_a_truncated_request_starts_nothing(served: Served) -> None:
    dialled = await Peer.dial(served.path)
    await dialled.send(forward(1)[:-1])
    dialled.close()
    await served.server.stop()
    assert served.forward.received == []


# Start and stop.


async def test_stop_lets_running_handlers_answer(served: Served, peer: Peer) -> None:
    await peer.send(forward(1, "wait"))
    await served.forward.running.acquire()
    stopping = asyncio.create_task(served.server.stop())
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await Peer.dial(served.path)
    await peer.send(forward(3, "after the stop"))
    served.forward.may_end.set()
    assert (await peer.response())[0] == 1
    await stopping
    await peer.wait_ended()
    assert len(served.forward.received) == 1


async def test_stop_ends_handlers_that_exceed_the_budget(served: Served, peer: Peer) -> None:
    await peer.send(forward(1, "wait"))
    await served.forward.running.acquire()
    await served.server.stop(0)
    assert served.forward.cancelled.is_set()
    await peer.wait_ended()


async def test_stop_removes_the_socket_and_can_be_repeated(served: Served) -> None:
    await served.server.stop()
    await served.server.stop()
    assert not served.path.exists()


async def test_stop_leaves_a_successors_socket(served: Served) -> None:
    served.path.rename(served.path.with_suffix(".old"))
    successor = Listener(served.path)
    await served.server.stop()
    assert served.path.is_socket()
    successor.close()


async def test_a_socket_left_by_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    Listener(tmp_path / "s").close()
    server = Server()
    await server.serve(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    (await Peer.dial(tmp_path / "s")).close()
    await server.stop()


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(FailedPrecondition, match="in the way"):
        await Server().serve(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"


async def test_a_place_that_takes_no_socket_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="can't listen at"):
        await Server().serve(tmp_path / "missing" / "s")


async def test_serving_passes_a_failpoint(tmp_path: Path) -> None:
    failpoints.configure("ttrpc.serve.listen=error(no)")
    try:
        with pytest.raises(Internal, match="no"):
            await Server().serve(tmp_path / "s")
    finally:
        failpoints.configure("")
    assert not (tmp_path / "s").exists()


# With our own client.


async def test_client_and_server_end_to_end(served: Served, client: Client) -> None:
    await asyncio.gather(*(call(client, str(number)) for number in range(500)))
    assert [received.envelope.topic for received, _ in served.forward.received] == [str(number) for number in range(500)]


@pytest.mark.parametrize(
    ("topic", "expected"), [("fail", AlreadyExists), ("crash", Internal), ("large", ResourceExhausted)], ids=["error", "bug", "overlong"]
)
async def test_errors_arrive_as_their_class(client: Client, topic: str, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        await call(client, topic)
    await call(client, "next")


async def test_an_unknown_method_is_unimplemented(client: Client) -> None:
    with pytest.raises(Unimplemented):
        await client.call("containerd.task.v3.Task", "Connect", Empty(), Empty)


async def test_a_timeout_ends_the_handler(served: Served, client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        await call(client, "wait", timeout=0.02)
    await served.forward.cancelled.wait()
    await call(client, "next")


async def test_a_cancelled_call_reaches_its_handler_only_as_a_close(served: Served, client: Client) -> None:
    waiting = asyncio.create_task(call(client, "wait"))
    await served.forward.running.acquire()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await call(client, "next")
    assert not served.forward.cancelled.is_set()
    client.close()
    await served.forward.cancelled.wait()


async def test_a_stopped_server_is_closed_for_its_clients(served: Served, client: Client) -> None:
    waiting = asyncio.create_task(call(client, "wait"))
    await served.forward.running.acquire()
    await served.server.stop(0)
    with pytest.raises(Closed):
        await waiting
    await client.wait_closed()


async def test_error_classes_survive_the_wire(tmp_path: Path) -> None:
    async def refuse(request: Empty, metadata: Metadata) -> Message:
        raise classes[0](f"no {classes[0].__name__}")

    classes = [InvalidArgument, NotFound, FailedPrecondition, Unavailable, Unimplemented, DeadlineExceeded]
    server = Server()
    server.register("s", "m", Empty, refuse)
    await server.serve(tmp_path / "s")
    connected = await Client.connect(f"unix://{tmp_path}/s", supervisor=Supervisor("test"))
    while classes:
        with pytest.raises(classes[0], match=f"^no {classes[0].__name__}$"):
            await connected.call("s", "m", Empty(), Empty)
        classes.pop(0)
    connected.close()
    await server.stop()
