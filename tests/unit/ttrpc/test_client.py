"""The client against real unix sockets, with a shim that the test plays by hand. Numbers are those of runtime-v2.md section 10."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent import failpoints, metrics
from agent.aio import Supervisor
from agent.api.runtime.task.v2.shim_pb2 import (
    ConnectRequest,
    ConnectResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    ExecProcessRequest,
    WaitRequest,
    WaitResponse,
)
from agent.errdefs import (
    Closed,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from agent.ttrpc import Client
from agent.ttrpc.protocol import MAX_LENGTH
from tests.unit.ttrpc.peer import Listener, Peer, answer, error, frame, listening

TASK = "containerd.task.v2.Task"


@dataclass
class Owner:
    """Whoever is told of the close: counts, and returns when the test says so."""

    told: int = 0
    may_return: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_close(self) -> None:
        self.told += 1
        await self.may_return.wait()


@dataclass
class Link:
    client: Client
    peer: Peer
    owner: Owner
    supervisor: Supervisor

    async def connect(self, name: str = "c", timeout: float | None = None) -> ConnectResponse:
        return await self.client.call(TASK, "Connect", ConnectRequest(id=name), ConnectResponse, timeout=timeout)

    async def settle(self) -> None:
        """Return when the client has handled all that the peer sent before."""
        call = asyncio.create_task(self.connect("settle"))
        stream_id, _ = await self.peer.request()
        await self.peer.send(answer(stream_id, ConnectResponse()))
        await call


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    owner = Supervisor("test")
    yield owner
    await owner.stop(0)


@pytest.fixture
async def link(tmp_path: Path, supervisor: Supervisor) -> AsyncIterator[Link]:
    listener = Listener(tmp_path / "s")
    owner = Owner()
    client = await Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor, on_close=owner.on_close)
    peer = await listener.accept()
    yield Link(client, peer, owner, supervisor)
    owner.may_return.set()
    client.close()
    await client.wait_closed()
    peer.close()
    listener.close()


def late_answers() -> float:
    return metrics.registry.get_sample_value("orlop_ttrpc_late_answers_total") or 0


# Calls.


async def test_a_call_carries_service_method_payload_and_metadata(link: Link) -> None:
    call = asyncio.create_task(
        link.client.call(TASK, "Connect", ConnectRequest(id="c1"), ConnectResponse, metadata={"containerd-namespace-ttrpc": "k8s.io"})
    )
    stream_id, request = await link.peer.request()
    assert (stream_id, request.service, request.method, request.timeout_nano) == (1, TASK, "Connect", 0)
    assert ConnectRequest.FromString(request.payload).id == "c1"
    assert [(pair.key, pair.value) for pair in request.metadata] == [("containerd-namespace-ttrpc", "k8s.io")]
    await link.peer.send(answer(1, ConnectResponse(shim_pid=7)))
    assert (await call).shim_pid == 7


async def test_an_empty_response_frame_is_an_empty_success(link: Link) -> None:
    call = asyncio.create_task(link.connect())
    await link.peer.request()
    await link.peer.send(frame(1, 2))
    assert await call == ConnectResponse()


async def test_a_status_is_raised_as_its_class_with_the_shims_text(link: Link) -> None:
    call = asyncio.create_task(link.connect())
    await link.peer.request()
    await link.peer.send(error(1, 5, "container not created: not found"))
    with pytest.raises(NotFound, match=r"^container not created: not found$"):
        await call


@pytest.mark.parametrize("data", [frame(1, 2, b"\xff"), frame(1, 2, b"\x12\x01\xff")], ids=["response", "payload"])
async def test_an_unreadable_answer_fails_its_call_alone(link: Link, data: bytes) -> None:
    call = asyncio.create_task(link.connect())
    await link.peer.request()
    await link.peer.send(data)
    with pytest.raises(Internal):
        await call
    await link.settle()


async def test_7_ids_of_1000_concurrent_calls_increase_on_the_wire(link: Link) -> None:
    calls = [asyncio.create_task(link.connect(str(number))) for number in range(1000)]
    received = [await link.peer.request() for _ in calls]
    assert [stream_id for stream_id, _ in received] == list(range(1, 2000, 2))
    for stream_id, request in reversed(received):  # out of order, each answered with its own id
        pid = int(ConnectRequest.FromString(request.payload).id)
        await link.peer.send(answer(stream_id, ConnectResponse(shim_pid=pid)))
    assert [response.shim_pid for response in await asyncio.gather(*calls)] == list(range(1000))


@pytest.mark.field_fault("11")
async def test_7_late_and_unknown_answers_hurt_no_other_call(link: Link) -> None:
    abandoned, kept = asyncio.create_task(link.connect()), asyncio.create_task(link.connect())
    await link.peer.request()
    await link.peer.request()
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    before = late_answers()
    for stream_id in (99, 2, 0, 1, 1):  # never made, even, zero, late, and late once more
        await link.peer.send(answer(stream_id, ConnectResponse()))
    await link.peer.send(answer(3, ConnectResponse(shim_pid=3)))
    assert (await kept).shim_pid == 3
    assert late_answers() == before + 1


async def test_8_an_overlong_request_is_refused_locally(link: Link) -> None:
    with pytest.raises(ResourceExhausted, match="not sent"):
        await link.client.call(TASK, "Connect", ConnectRequest(id="x" * MAX_LENGTH), ConnectResponse)
    await link.settle()  # whose request is the first thing on the wire
    assert link.owner.told == 0


async def test_8_an_overlong_answer_is_discarded_and_the_connection_goes_on(link: Link) -> None:
    first, second = asyncio.create_task(link.connect()), asyncio.create_task(link.connect())
    await link.peer.send(frame(1, 2, bytes(MAX_LENGTH + 1)) + answer(3, ConnectResponse(shim_pid=3)))
    with pytest.raises(ResourceExhausted, match="4194305"):
        await first
    assert (await second).shim_pid == 3


@pytest.mark.field_fault("0a")
async def test_9_a_caller_that_gives_up_on_create_leaves_the_call_to_end_by_itself(link: Link) -> None:
    outcome: list[int] = []

    async def create() -> None:
        made = await link.client.call(TASK, "Create", CreateTaskRequest(id="c1"), CreateTaskResponse)
        outcome.append(made.pid)

    caller = asyncio.create_task(link.supervisor.detached(create(), name="create c1"))
    stream_id, request = await link.peer.request()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert request.timeout_nano == 0
    assert not link.client.closed
    await link.peer.send(answer(stream_id, CreateTaskResponse(pid=42)))
    await link.settle()
    assert outcome == [42]


async def test_9_a_late_answer_is_dropped_and_counted(link: Link) -> None:
    before = late_answers()
    call = asyncio.create_task(link.connect())
    await link.peer.request()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert "0 calls awaited, 1 outstanding" in repr(link.client)
    await link.peer.send(answer(1, ConnectResponse()))
    await link.settle()
    assert late_answers() == before + 1
    assert "0 calls awaited, 0 outstanding" in repr(link.client)
    assert not link.client.closed


@pytest.mark.parametrize("data", [answer(1, ConnectResponse()), error(1, 5, "gone")], ids=["answer", "error"])
async def test_9_an_answer_in_the_very_turn_of_the_cancel_is_counted_too(link: Link, data: bytes) -> None:
    before = late_answers()
    call = asyncio.create_task(link.connect())
    await link.peer.request()
    call.cancel()
    link.client.data_received(data)  # the task has not run since its cancel
    with pytest.raises(asyncio.CancelledError):
        await call
    assert late_answers() == before + 1


# Timeouts.


async def test_a_timeout_is_sent_along_and_bounds_the_wait(link: Link) -> None:
    call = asyncio.create_task(link.connect(timeout=0.05))
    _, request = await link.peer.request()
    assert 0 < request.timeout_nano <= 50_000_000
    with pytest.raises(DeadlineExceeded, match=r"Task/Connect at unix:.* no answer within 0\.05 s"):
        await call
    before = late_answers()
    await link.peer.send(error(1, 4, "context deadline exceeded"))
    await link.settle()
    assert late_answers() == before + 1


async def test_no_time_left_sends_nothing(link: Link) -> None:
    with pytest.raises(DeadlineExceeded):
        await link.connect(timeout=0)
    await link.settle()


# Closing.

OUTSTANDING = 300


async def eof(link: Link) -> None:
    link.peer.socket.shutdown(socket.SHUT_WR)


async def reset(link: Link) -> None:
    link.peer.close()  # with requests unread, which makes it ECONNRESET


async def broken_pipe(link: Link) -> None:
    for _ in range(OUTSTANDING):  # with a full socket there would be no write, so no EPIPE
        await link.peer.request()
    link.peer.socket.shutdown(socket.SHUT_RD)
    with pytest.raises(Closed, match="Broken pipe"):
        await link.connect()


async def truncated(link: Link) -> None:
    await link.peer.send(answer(1, ConnectResponse(shim_pid=1))[:-1])
    link.peer.socket.shutdown(socket.SHUT_WR)


async def truncated_overlong(link: Link) -> None:
    await link.peer.send(frame(1, 2, b"a part", length=MAX_LENGTH + 1))
    link.peer.socket.shutdown(socket.SHUT_WR)


async def local(link: Link) -> None:
    link.client.close()
    link.client.close()


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (eof, "by the peer"),
        (reset, "Connection reset"),
        (broken_pipe, "Broken pipe"),
        (truncated, "in the middle of a frame"),
        (truncated_overlong, "in the middle of a frame"),
        (local, "by us"),
    ],
)
async def test_10_every_end_fails_all_calls_and_tells_the_owner_once(link: Link, end: Callable[[Link], Awaitable[None]], why: str) -> None:
    waits = [asyncio.create_task(link.client.call(TASK, "Wait", WaitRequest(id=str(n)), WaitResponse)) for n in range(OUTSTANDING)]
    await asyncio.sleep(0)  # the calls are on the wire
    await end(link)
    for result in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(result, Closed)
        assert why in str(result)
    assert link.client.closed
    with pytest.raises(Closed, match=why):
        await link.connect()

    waiting = asyncio.create_task(link.client.wait_closed())
    await asyncio.wait([waiting], timeout=0.01)
    assert link.owner.told == 1
    assert not waiting.done()  # on_close hasn't returned
    link.owner.may_return.set()
    await waiting
    link.client.close()
    link.client.connection_lost(None)
    await asyncio.sleep(0)
    assert link.owner.told == 1
    if end is not reset:
        await link.peer.wait_ended()


async def test_wait_closed_without_a_callback(tmp_path: Path, supervisor: Supervisor) -> None:
    listener = Listener(tmp_path / "s")
    client = await Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor)
    waiting = asyncio.create_task(client.wait_closed())
    await asyncio.sleep(0)
    assert not waiting.done()
    client.close()
    await waiting
    listener.close()


@pytest.mark.parametrize("outcome", ["raises", "cancelled before it ran"])
async def test_a_callback_that_never_returns_orderly_still_ends_wait_closed(tmp_path: Path, outcome: str) -> None:
    async def on_close() -> None:
        raise Internal("cleanup failed")

    owner = Supervisor("test")
    listener = Listener(tmp_path / "s")
    client = await Client.connect(f"unix://{tmp_path}/s", supervisor=owner, on_close=on_close)
    client.close()
    if outcome != "raises":
        await owner.stop(0)
    await client.wait_closed()
    listener.close()


async def test_a_peer_that_closes_at_once_gives_a_closed_client(tmp_path: Path, supervisor: Supervisor) -> None:
    owner = Owner()
    owner.may_return.set()
    listener = Listener(tmp_path / "s")
    connecting = asyncio.create_task(Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor, on_close=owner.on_close))
    (await listener.accept()).close()
    client = await connecting
    await client.wait_closed()
    assert owner.told == 1
    with pytest.raises(Closed):
        await client.call(TASK, "Connect", ConnectRequest(), ConnectResponse)
    listener.close()


# A shim that doesn't read.


async def fill(link: Link) -> list[asyncio.Task[ConnectResponse]]:
    """Calls of 1 MiB, more than socket and transport hold; the later ones wait for room."""
    large = ExecProcessRequest(id="x" * (1 << 20))
    calls = [asyncio.create_task(link.client.call(TASK, "Exec", large, ConnectResponse)) for _ in range(4)]
    await asyncio.sleep(0)
    assert "4 calls awaited" not in repr(link.client)
    return calls


async def test_calls_wait_for_room_and_keep_their_order(link: Link) -> None:
    calls = [*await fill(link), asyncio.create_task(link.connect())]
    assert [(await link.peer.request())[0] for _ in calls] == [1, 3, 5, 7, 9]
    for stream_id in (9, 7, 5, 3, 1):
        await link.peer.send(answer(stream_id, ConnectResponse(shim_pid=stream_id)))
    assert [(await call).shim_pid for call in calls] == [1, 3, 5, 7, 9]


async def test_a_call_that_waits_for_room_honours_its_timeout_and_is_never_sent(link: Link) -> None:
    calls = await fill(link)
    with pytest.raises(DeadlineExceeded):
        await link.connect(timeout=0.01)
    assert [(await link.peer.request())[1].method for _ in calls] == ["Exec"] * 4
    for stream_id in (1, 3, 5, 7):
        await link.peer.send(answer(stream_id, ConnectResponse()))
    await asyncio.gather(*calls)
    await link.settle()


async def test_calls_that_wait_for_room_fail_with_the_close(link: Link) -> None:
    calls = await fill(link)
    link.client.close()
    assert [type(result) for result in await asyncio.gather(*calls, return_exceptions=True)] == [Closed] * 4


# Dialling.


@pytest.mark.parametrize("there", ["nothing", "a dead socket", "a dead abstract name"])
async def test_nobody_listening_is_unavailable_at_once(tmp_path: Path, supervisor: Supervisor, there: str) -> None:
    owner = Owner()
    address = f"unix://{tmp_path}/s" if there != "a dead abstract name" else f"orlop-{uuid.uuid4()}"
    if there == "a dead socket":
        Listener(tmp_path / "s").close()
    with pytest.raises(Unavailable, match="nobody listens at"):
        await Client.connect(address, supervisor=supervisor, on_close=owner.on_close, budget=60)
    assert owner.told == 0


@pytest.mark.parametrize("problem", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.ENOBUFS])
@pytest.mark.parametrize("call", ["socket", "connect"])
async def test_what_says_nothing_about_the_peer_is_not_taken_for_its_absence(
    tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, call: str, problem: int
) -> None:
    class Refused(socket.socket):
        def __init__(self, *arguments: Any) -> None:
            if call == "socket":
                raise OSError(problem, os.strerror(problem))
            super().__init__(*arguments)

        def connect(self, address: object) -> None:
            raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr("agent.ttrpc.client.socket.socket", Refused)
    with pytest.raises(OSError, match=os.strerror(problem)) as raised:
        await Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor)
    assert raised.value.errno == problem


@pytest.mark.parametrize("form", ["unix", "path", "abstract", "abstract path"])
async def test_address_forms(tmp_path: Path, supervisor: Supervisor, form: str) -> None:
    name = f"{tmp_path}/s" if form != "abstract" else f"orlop-{uuid.uuid4()}"
    listener = Listener("\0" + name if form.startswith("abstract") else name)
    client = await Client.connect("unix://" + name if form == "unix" else name, supervisor=supervisor)
    peer = await listener.accept()
    client.close()
    await peer.wait_ended()
    peer.close()
    listener.close()


@pytest.mark.parametrize("address", ["vsock://2:1024", "hvsock://x", "unix://relative", ""])
async def test_other_addresses_are_refused(supervisor: Supervisor, address: str) -> None:
    with pytest.raises(InvalidArgument):
        await Client.connect(address, supervisor=supervisor)


async def test_a_full_queue_is_waited_for_within_the_budget(tmp_path: Path, supervisor: Supervisor) -> None:
    listener = Listener(tmp_path / "s", backlog=0)
    first = await Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor)
    with pytest.raises(DeadlineExceeded, match=r"connecting to unix:.* took longer"):
        await Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor, budget=0.02)
    dialling = asyncio.create_task(Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor))
    await asyncio.sleep(0)
    assert not dialling.done()
    peers = [await listener.accept()]
    second = await dialling
    peers.append(await listener.accept())
    call = asyncio.create_task(second.call(TASK, "Connect", ConnectRequest(), ConnectResponse))
    stream_id, _ = await peers[1].request()
    await peers[1].send(answer(stream_id, ConnectResponse(shim_pid=2)))
    assert (await call).shim_pid == 2
    first.close()
    second.close()
    for peer in peers:
        peer.close()
    listener.close()


async def test_a_cancelled_connect_tells_nobody_and_leaves_no_connection(tmp_path: Path, supervisor: Supervisor) -> None:
    owner = Owner()
    cancelled = 0
    async with listening(tmp_path / "s") as listener:
        for turns in range(1, 10):  # wherever the loop stands when the cancel comes
            connecting = asyncio.create_task(Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor, on_close=owner.on_close))
            for _ in range(turns):
                await asyncio.sleep(0)
            if connecting.done():
                owner.may_return.set()
                (await connecting).close()
                break
            peer = await listener.accept()
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await peer.wait_ended()
            assert owner.told == 0
            peer.close()
            cancelled += 1
    assert cancelled


async def test_dialling_passes_a_failpoint(tmp_path: Path, supervisor: Supervisor) -> None:
    failpoints.configure("ttrpc.connect.dial=error(no dialling today)")
    try:
        with pytest.raises(Internal, match="no dialling today"):
            await Client.connect(f"unix://{tmp_path}/s", supervisor=supervisor)
    finally:
        failpoints.configure("")
