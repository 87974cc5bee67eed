"""Streaming verbs over a real socket: messages in order, errors in the middle, clients that leave."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent import metrics
from agent.errdefs import NotFound
from agent.pods.event_feed import EventFeed, Subscription
from cri.api import api_pb2 as cri
from cri.server.edge import Edge, StreamVerb

RUNTIME = cri.DESCRIPTOR.services_by_name["RuntimeService"]
Open = Callable[..., Awaitable[Any]]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for a socket's."""
    directory = Path(tempfile.mkdtemp(prefix="streams-"))
    yield directory / "orlop.sock"
    shutil.rmtree(directory)


@pytest.fixture
async def open_stream(place: Path) -> AsyncIterator[Open]:
    """Serves GetContainerEvents with the verb given, and calls it; returns the call."""
    edges, channels = [], []

    async def call(verb: StreamVerb, payload: bytes = b"") -> Any:
        edge = Edge(place, {RUNTIME: {"GetContainerEvents": verb}})
        await edge.start()
        edges.append(edge)
        channel = grpc.aio.insecure_channel(f"unix:{place}")
        channels.append(channel)
        remote: Any = channel.unary_stream(
            "/runtime.v1.RuntimeService/GetContainerEvents", response_deserializer=cri.ContainerEventResponse.FromString
        )
        return remote(payload)

    yield call
    for channel in channels:
        await channel.close()
    for edge in edges:
        await edge.stop(0)


def event(number: int) -> cri.ContainerEventResponse:
    return cri.ContainerEventResponse(container_id=str(number))


def count(name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


async def test_messages_and_bytes_come_in_their_order(open_stream: Open) -> None:
    async def verb(request: cri.GetEventsRequest) -> AsyncGenerator[Any, None]:
        yield event(1)
        yield event(2).SerializeToString()

    before = count("orlop_cri_operations_total", method="GetContainerEvents")
    assert [message async for message in await open_stream(verb)] == [event(1), event(2)]
    assert count("orlop_cri_operations_total", method="GetContainerEvents") == before + 1


async def test_nothing_is_a_stream_as_well(open_stream: Open) -> None:
    async def verb(request: cri.GetEventsRequest) -> AsyncGenerator[Any, None]:
        for number in range(0):
            yield event(number)

    assert [message async for message in await open_stream(verb)] == []


async def test_an_error_ends_it_with_its_code_and_sentence(open_stream: Open) -> None:
    async def verb(request: cri.GetEventsRequest) -> AsyncGenerator[Any, None]:
        yield event(1)
        raise NotFound("it is gone")

    call = await open_stream(verb)
    assert await call.read() == event(1)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.NOT_FOUND, "it is gone")


async def test_a_fault_of_the_agent_is_internal(open_stream: Open) -> None:
    async def verb(request: cri.GetEventsRequest) -> AsyncGenerator[Any, None]:
        yield event(1)
        raise ZeroDivisionError("oops")

    call = await open_stream(verb)
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "GetContainerEvents failed inside the agent: oops" in (failure.value.details() or "")


async def test_bytes_that_are_no_request(open_stream: Open) -> None:
    def verb(request: cri.GetEventsRequest) -> Subscription:
        raise AssertionError("not reached")

    call = await open_stream(verb, b"\xff" * 10)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_knows_from_when_on_it_listens(open_stream: Open) -> None:
    feed = EventFeed()
    call = await open_stream(lambda request: feed.subscribe())
    await call.initial_metadata()
    feed.publish(event(1).SerializeToString())
    assert await call.read() == event(1)
    feed.close()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_client_that_leaves_ends_its_subscription(open_stream: Open) -> None:
    feed = EventFeed()
    call = await open_stream(lambda request: feed.subscribe())
    await call.initial_metadata()
    assert feed.listened_to
    call.cancel()
    async with asyncio.timeout(10):
        while feed.listened_to:
            await asyncio.sleep(0.01)
