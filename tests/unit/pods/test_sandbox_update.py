"""UpdatePodSandboxResources: checked, remembered, shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound
from agent.pods.context import Pods
from agent.pods.sandbox import SandboxRecord, SandboxState
from agent.pods.sandbox_status import pod_sandbox_status
from agent.pods.sandbox_update import update_pod_sandbox_resources
from cri.api import api_pb2 as cri
from tests.unit.pods.fakes import POD, World

MIB = 1 << 20
BEFORE = cri.LinuxPodSandboxConfig(
    overhead=cri.LinuxContainerResources(memory_limit_in_bytes=MIB), resources=cri.LinuxContainerResources(cpu_shares=512)
)
RESOURCES = cri.LinuxContainerResources(cpu_shares=1024, cpu_quota=200_000, cpu_period=100_000, memory_limit_in_bytes=256 * MIB)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def sandbox(world: World, **changes: Any) -> None:
    metadata = cri.PodSandboxMetadata(name="web", namespace="default", uid="u1")
    await world.sandbox(config=cri.PodSandboxConfig(metadata=metadata, linux=BEFORE), **changes)


async def update(world: World, sandbox_id: str = POD, **parts: cri.LinuxContainerResources) -> None:
    request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=sandbox_id, **parts)
    assert await update_pod_sandbox_resources(world.pods, request) == cri.UpdatePodSandboxResourcesResponse()


def linux(world: World) -> cri.LinuxPodSandboxConfig:
    return world.registry.sandboxes.get(POD).record.config.linux


async def test_they_are_remembered_and_stored(world: World) -> None:
    await sandbox(world)
    overhead = cri.LinuxContainerResources(memory_limit_in_bytes=2 * MIB, cpu_quota=500, cpu_period=100_000)
    await update(world, overhead=overhead, resources=RESOURCES)
    assert linux(world) == cri.LinuxPodSandboxConfig(overhead=overhead, resources=RESOURCES)
    [stored] = (await world.registry.sandboxes._records.load()).values()
    assert SandboxRecord.decode(stored).config.linux == linux(world)


async def test_status_shows_them(world: World) -> None:
    await sandbox(world)
    await update(world, resources=RESOURCES)
    pods = cast(Pods, SimpleNamespace(registry=world.registry, ledger=SimpleNamespace(owned=lambda sandbox: [])))
    answer = await pod_sandbox_status(pods, cri.PodSandboxStatusRequest(pod_sandbox_id=POD, verbose=True))
    shown = json.loads(answer.info["info"])
    assert shown["resources"]["memory_limit_in_bytes"] == str(256 * MIB)
    assert shown["overhead"] == {"memory_limit_in_bytes": str(MIB)}


async def test_what_isnt_given_stays(world: World) -> None:
    await sandbox(world)
    await update(world, resources=RESOURCES)
    assert linux(world).overhead == BEFORE.overhead
    await update(world, resources=cri.LinuxContainerResources())
    assert linux(world).resources == cri.LinuxContainerResources(), "given, and without limits"


async def test_again_is_no_change(world: World) -> None:
    await sandbox(world)
    await update(world, resources=RESOURCES)
    record = world.registry.sandboxes.get(POD).record
    await update(world, resources=RESOURCES)
    assert world.registry.sandboxes.get(POD).record is record


@pytest.mark.parametrize("state", sorted(set(SandboxState) - {SandboxState.READY}))
async def test_one_that_isnt_ready(world: World, state: SandboxState) -> None:
    await sandbox(world, state=state)
    with pytest.raises(FailedPrecondition, match=f"{POD} is {state}"):
        await update(world, resources=RESOURCES)
    assert linux(world) == BEFORE


async def test_an_unknown_one(world: World) -> None:
    with pytest.raises(NotFound):
        await update(world, resources=RESOURCES)


@pytest.mark.parametrize(
    ("part", "limits", "words"),
    [
        ("resources", {"memory_limit_in_bytes": -1}, "resources: memory limit -1"),
        ("resources", {"memory_limit_in_bytes": 4096}, "resources.memory_limit_in_bytes 4096"),
        ("resources", {"cpu_shares": -2}, "resources.cpu_shares -2"),
        ("resources", {"cpu_period": 5}, "resources.cpu_period 5"),
        ("resources", {"unified": {"../x": "1"}}, "resources.unified"),
        ("overhead", {"memory_limit_in_bytes": -1}, "overhead.memory_limit_in_bytes -1"),
        ("overhead", {"cpu_quota": -2}, "overhead.cpu_quota -2"),
    ],
)
async def test_what_can_not_be_changes_nothing(world: World, part: str, limits: dict[str, Any], words: str) -> None:
    await sandbox(world)
    refused: Any = {"resources": RESOURCES, part: cri.LinuxContainerResources(**limits)}
    with pytest.raises(InvalidArgument, match=f"^{words}"):
        await update(world, **refused)
    assert linux(world) == BEFORE
