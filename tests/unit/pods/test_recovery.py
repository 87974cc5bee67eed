"""What is looked at while verbs go on: a state that has changed meanwhile is not set back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from google.protobuf.message import Message

from agent.events import Exit
from agent.pods import exits, recovery
from agent.pods.container import ContainerState
from agent.pods.context import Pods
from agent.pods.sandbox import SandboxEvent, SandboxState
from cri.api import api_pb2 as cri
from tests.unit.pods.fakes import APP, World


class Node:
    """Namespaces and tasks, of which nothing is there; `meanwhile` happens while it is looked."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def inode(self, pin: Path) -> int | None:
        if self.meanwhile is not None:
            await self.meanwhile()
        return None

    def find(self, task_id: str) -> None:
        return None

    async def drain(self, container_id: str, budget: float) -> None:
        raise OSError(5, "Input/output error")

    async def release(self, resources: object) -> list[object]:
        return []

    def owned(self, *, container: str) -> list[object]:
        return []


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "cgroup")


@pytest.fixture
def pods(world: World, node: Node) -> Pods:
    parts = {**vars(world), "namespaces": node, "tasks": node, "logs": node, "ledger": node, "releases": node}
    return cast(Pods, SimpleNamespace(**parts))


async def test_a_sandbox_whose_pin_is_gone_is_lost(world: World, pods: Pods) -> None:
    live = await world.sandbox()
    await recovery.check_pins(pods, live)
    assert live.record.state is SandboxState.LOST


@pytest.mark.parametrize("events", [(SandboxEvent.STOP,), (SandboxEvent.STOP, SandboxEvent.RELEASED)])
async def test_a_stop_meanwhile_is_not_undone_by_a_look_at_the_pins(
    world: World, pods: Pods, node: Node, events: tuple[SandboxEvent, ...]
) -> None:
    """It wrote the record that it had begun with: StopPodSandbox then found a sandbox that it hadn't begun to stop."""
    live = await world.sandbox()

    async def stop() -> None:
        for event in events:
            await pods.registry.sandboxes.update(live, live.record.after(event))

    node.meanwhile = stop
    await recovery.check_pins(pods, live)
    stopped = live.record.state
    assert stopped is (SandboxState.STOPPING if len(events) == 1 else SandboxState.STOPPED)


async def test_a_sandbox_that_is_a_task_is_lost_without_it(world: World, pods: Pods) -> None:
    live = await world.sandbox(has_task=True)
    await exits.check_task(pods, live)
    assert live.record.state is SandboxState.LOST


async def test_one_without_a_task_is_not(world: World, pods: Pods) -> None:
    live = await world.sandbox()
    await exits.check_task(pods, live)
    assert live.record.state is SandboxState.READY


async def test_an_exit_is_recorded_though_the_log_can_not_be_read(world: World, pods: Pods) -> None:
    live = await world.container()
    await exits._exited(pods, APP, Exit(3, 1))
    assert (live.record.state, live.record.exit_code) == (ContainerState.EXITED, 3)
    assert live.exited.is_set()


# ---- who waits for what


async def waits(pods: Pods, request: Message) -> bool:
    """Whether it still does after some turns of the loop; it is given up then."""
    waiting = asyncio.ensure_future(recovery.settled(pods, request))
    for _ in range(5):
        await asyncio.sleep(0)
    if waiting.done():
        await waiting
        return False
    waiting.cancel()
    return True


async def test_a_call_waits_for_its_own_pod_alone(world: World, pods: Pods) -> None:
    sound, slow = await world.sandbox(), await world.sandbox("slow")
    container = await world.container(sandbox_id="slow")
    pods.unsettled = {slow.record.id: asyncio.Event()}
    assert not await waits(pods, cri.StopPodSandboxRequest(pod_sandbox_id=sound.record.id))
    assert not await waits(pods, cri.RunPodSandboxRequest())
    assert await waits(pods, cri.StopPodSandboxRequest(pod_sandbox_id=slow.record.id))
    assert await waits(pods, cri.StopContainerRequest(container_id=container.record.id))
    assert await waits(pods, cri.RemoveContainerRequest(container_id="nobody knows")), "it may be what a crash left"
    pods.unsettled.pop(slow.record.id).set()
    assert not await waits(pods, cri.StopContainerRequest(container_id=container.record.id))
    assert not await waits(pods, cri.RemoveContainerRequest(container_id="nobody knows"))
