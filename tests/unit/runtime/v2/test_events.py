"""Events as shims forward them, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agent import ttrpc
from agent.aio import Supervisor
from agent.api.events.task_pb2 import TaskExit, TaskOOM, TaskStart
from agent.api.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from agent.api.types.event_pb2 import Envelope
from agent.errdefs import InvalidArgument
from agent.events import Exit
from agent.runtime.v2.events import SERVICE, EventServer


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, ...] | Exit] = []

    def exited(self, container_id: str, exec_id: str, exit_: Exit) -> None:
        self.events += [("exit", container_id, exec_id), exit_]

    def out_of_memory(self, container_id: str) -> None:
        self.events.append(("oom", container_id))


@pytest.fixture
async def heard() -> Heard:
    return Heard()


@pytest.fixture
async def shim(tmp_path: Path, heard: Heard) -> AsyncIterator[ttrpc.Client]:
    server = EventServer("k8s.io", heard)
    await server.serve(tmp_path / "s")
    supervisor = Supervisor("test")
    client = await ttrpc.Client.connect(str(tmp_path / "s"), supervisor=supervisor)
    yield client
    client.close()
    await server.stop()
    await supervisor.stop(0)


async def forward(shim: ttrpc.Client, topic: str, event: Message | bytes, namespace: str = "k8s.io") -> None:
    value = event if isinstance(event, bytes) else event.SerializeToString()
    envelope = Envelope(namespace=namespace, topic=topic, event=Any(type_url="containerd.events.X", value=value))
    await shim.call(SERVICE, "Forward", ForwardRequest(envelope=envelope), Empty)


async def test_the_exit_of_an_init(shim: ttrpc.Client, heard: Heard) -> None:
    await forward(shim, "/tasks/exit", TaskExit(container_id="c1", id="c1", pid=7, exit_status=137, exited_at=Timestamp(seconds=5)))
    assert heard.events == [("exit", "c1", ""), Exit(137, 5_000_000_000, 7)]


async def test_the_exit_of_an_exec(shim: ttrpc.Client, heard: Heard) -> None:
    await forward(shim, "/tasks/exit", TaskExit(container_id="c1", id="e1", pid=7, exited_at=Timestamp(seconds=5)))
    assert heard.events == [("exit", "c1", "e1"), Exit(0, 5_000_000_000, 7)]


async def test_a_pid_that_is_none(shim: ttrpc.Client, heard: Heard) -> None:
    await forward(shim, "/tasks/exit", TaskExit(container_id="c1", id="c1", pid=4294967295, exited_at=Timestamp(seconds=5)))
    assert heard.events[1] == Exit(0, 5_000_000_000, 0)


@pytest.mark.parametrize("seconds", [0, -62135596800])
async def test_a_time_that_is_not_set_is_now(shim: ttrpc.Client, heard: Heard, seconds: int) -> None:
    await forward(shim, "/tasks/exit", TaskExit(container_id="c1", id="c1", exited_at=Timestamp(seconds=seconds)))
    exit_ = heard.events[1]
    assert isinstance(exit_, Exit)
    assert exit_.exited_at > 1_700_000_000_000_000_000


async def test_out_of_memory(shim: ttrpc.Client, heard: Heard) -> None:
    await forward(shim, "/tasks/oom", TaskOOM(container_id="c1"))
    assert heard.events == [("oom", "c1")]


async def test_other_events_are_accepted(shim: ttrpc.Client, heard: Heard) -> None:
    await forward(shim, "/tasks/start", TaskStart(container_id="c1"))
    assert heard.events == []


async def test_what_is_refused(shim: ttrpc.Client, heard: Heard) -> None:
    with pytest.raises(InvalidArgument, match="'moby'"):
        await forward(shim, "/tasks/oom", TaskOOM(container_id="c1"), namespace="moby")
    with pytest.raises(InvalidArgument, match="is not a"):
        await forward(shim, "/tasks/exit", b"\xff\xff")
    assert heard.events == []
