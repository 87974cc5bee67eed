"""Which events follow from which changes of records, and what is in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.pods import container_status
from agent.pods.container import ContainerEvent, ContainerRecord, ContainerState
from agent.pods.container_events import get_container_events
from agent.pods.event_feed import Subscription
from agent.pods.sandbox import SandboxEvent
from cri.api import api_pb2 as cri
from tests.unit.pods.fakes import APP, POD, World

CREATED, STARTED, STOPPED, DELETED = (
    cri.CONTAINER_CREATED_EVENT,
    cri.CONTAINER_STARTED_EVENT,
    cri.CONTAINER_STOPPED_EVENT,
    cri.CONTAINER_DELETED_EVENT,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def listen(world: World) -> Subscription:
    return get_container_events(world.pods, cri.GetEventsRequest())


async def told(world: World, subscription: Subscription) -> list[cri.ContainerEventResponse]:
    """The events so far."""
    world.events.close()
    return [cri.ContainerEventResponse.FromString(event) async for event in subscription]


def kinds(events: list[cri.ContainerEventResponse]) -> list[tuple[str, int]]:
    return [(event.container_id, event.container_event_type) for event in events]


async def test_a_container(world: World) -> None:
    await world.sandbox()
    subscription = listen(world)
    live = await world.container(state=ContainerState.CREATED)
    table = world.registry.containers
    await table.update(live, live.record.after(ContainerEvent.START))
    await table.update(live, live.record.after(ContainerEvent.STARTED))
    await table.update(live, replace(live.record, oom=True))
    await table.update(live, live.record.after(ContainerEvent.EXIT, exit_code=3))
    await table.remove(live)
    await table.remove(live)
    events = await told(world, subscription)
    assert kinds(events) == [(APP, CREATED), (APP, STARTED), (APP, STOPPED), (APP, DELETED)]
    states = [[status.state for status in event.containers_statuses] for event in events]
    assert states == [[cri.CONTAINER_CREATED], [cri.CONTAINER_RUNNING], [cri.CONTAINER_EXITED], []]
    assert {event.pod_sandbox_status.id for event in events} == {POD}
    assert events[2].containers_statuses[0].exit_code == 3


async def test_an_exit_whose_reason_is_corrected_is_told_again(world: World) -> None:
    await world.sandbox()
    live = await world.container(state=ContainerState.EXITED, exit_code=137, reason="Error")
    subscription = listen(world)
    await world.registry.containers.update(live, replace(live.record, reason="OOMKilled"))
    [event] = await told(world, subscription)
    assert (event.container_event_type, event.containers_statuses[0].reason) == (STOPPED, "OOMKilled")


async def test_a_start_that_fails_is_a_stop(world: World) -> None:
    await world.sandbox()
    live = await world.container(state=ContainerState.STARTING)
    subscription = listen(world)
    await world.registry.containers.update(live, live.record.after(ContainerEvent.EXIT, exit_code=128))
    assert kinds(await told(world, subscription)) == [(APP, STOPPED)]


async def test_a_sandbox(world: World) -> None:
    subscription = listen(world)
    live = await world.sandbox()
    table = world.registry.sandboxes
    for step in (SandboxEvent.STOP, SandboxEvent.RELEASED, SandboxEvent.STOP):
        await table.update(live, live.record.after(step))
    await table.remove(live)
    events = await told(world, subscription)
    assert kinds(events) == [(POD, CREATED), (POD, STARTED), (POD, STOPPED), (POD, DELETED)]
    assert [event.pod_sandbox_status.state for event in events] == [cri.SANDBOX_READY] * 2 + [cri.SANDBOX_NOTREADY] * 2
    assert {event.pod_sandbox_status.metadata.uid for event in events} == {"u0"}, "also of the one that is gone"


async def test_a_sandbox_that_loses_a_pin_is_stopped_once(world: World) -> None:
    live = await world.sandbox()
    subscription = listen(world)
    for step in (SandboxEvent.PIN_GONE, SandboxEvent.PIN_GONE, SandboxEvent.STOP):
        await world.registry.sandboxes.update(live, live.record.after(step))
    assert kinds(await told(world, subscription)) == [(POD, STOPPED)]


async def test_what_is_loaded_is_no_news(world: World) -> None:
    await world.sandbox()
    await world.container()
    subscription = listen(world)
    await world.registry.load()
    assert await told(world, subscription) == []


async def test_a_pod_that_cant_be_shown_costs_an_event_and_not_the_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.sandbox()
    live = await world.container()
    subscription = listen(world)

    def fail(record: ContainerRecord) -> cri.ContainerStatus:
        raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(container_status, "to_status", fail)
    await world.registry.containers.update(live, live.record.after(ContainerEvent.EXIT, exit_code=1))
    assert live.record.state is ContainerState.EXITED
    assert await told(world, subscription) == []


async def test_without_a_listener_nothing_is_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_status, "to_status", None)
    await world.sandbox()
    await world.container()
