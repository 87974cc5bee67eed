"""UpdateContainerResources: merged with what there was, checked, and recorded when the engine has done it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.errdefs import FailedPrecondition, InvalidArgument, NotFound, Unknown
from agent.pods.container import ContainerRecord, ContainerState
from agent.pods.container_status import to_status
from agent.pods.container_update import merged, update_container_resources
from agent.pods.registry import Container
from cri.api import api_pb2 as cri
from tests.unit.pods.fakes import APP, FakeTask, World

MIB = 1 << 20
BEFORE = cri.LinuxContainerResources(
    cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_limit_in_bytes=64 * MIB, oom_score_adj=900
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def update(world: World, annotations: dict[str, str] | None = None, **limits: Any) -> None:
    request = cri.UpdateContainerResourcesRequest(
        container_id=APP, linux=cri.LinuxContainerResources(**limits), annotations=annotations or {}
    )
    await update_container_resources(world.pods, request)


def shown(live: Container) -> cri.LinuxContainerResources:
    return to_status(live.record).resources.linux


class TestMerge:
    def test_what_isnt_asked_for_stays(self) -> None:
        found = merged(BEFORE, cri.LinuxContainerResources(cpu_quota=70_000))
        assert found == cri.LinuxContainerResources(
            cpu_shares=512, cpu_quota=70_000, cpu_period=100_000, memory_limit_in_bytes=64 * MIB, oom_score_adj=900
        )
        assert merged(BEFORE, cri.LinuxContainerResources()) == BEFORE

    def test_an_oom_score_is_no_limit(self) -> None:
        assert merged(BEFORE, cri.LinuxContainerResources(oom_score_adj=-500)).oom_score_adj == 900

    def test_one_limit_for_each_size_of_page_and_file(self) -> None:
        present = cri.LinuxContainerResources(
            hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=1), cri.HugepageLimit(page_size="1GB", limit=2)],
            unified={"memory.high": "1", "memory.low": "2"},
        )
        asked = cri.LinuxContainerResources(hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=3)], unified={"memory.high": "4"})
        found = merged(present, asked)
        assert {limit.page_size: limit.limit for limit in found.hugepage_limits} == {"2MB": 3, "1GB": 2}
        assert dict(found.unified) == {"memory.high": "4", "memory.low": "2"}

    @pytest.mark.parametrize(
        ("present", "asked", "swap"),
        [
            pytest.param((64, 64), (128, 0), 128, id="no swap, and so it stays"),
            pytest.param((64, 64), (32, 0), 32, id="no swap with less memory"),
            pytest.param((64, 64), (128, 256), 256, id="as asked for"),
            pytest.param((64, 96), (80, 0), 96, id="some swap stays as much in all"),
            pytest.param((64, 0), (128, 0), 0, id="not said, not recorded"),
            pytest.param((64, -1), (128, 0), -1, id="no limit stays none"),
        ],
    )
    def test_swap(self, present: tuple[int, int], asked: tuple[int, int], swap: int) -> None:
        def limits(memory: int, both: int) -> cri.LinuxContainerResources:
            return cri.LinuxContainerResources(memory_limit_in_bytes=memory, memory_swap_limit_in_bytes=both)

        assert merged(limits(*present), limits(*asked)).memory_swap_limit_in_bytes == swap


class TestRunning:
    async def test_the_engine_gets_all_limits_and_no_devices(self, world: World) -> None:
        live = await world.container(resources=BEFORE)
        await update(world, {"why": "resize"}, memory_limit_in_bytes=128 * MIB)
        [(resources, annotations)] = world.tasks.tasks[APP].updates
        assert resources == {
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
            "memory": {"limit": 128 * MIB, "swap": 128 * MIB, "checkBeforeUpdate": True},
        }
        assert annotations == {"why": "resize"}
        assert shown(live).memory_limit_in_bytes == 128 * MIB
        assert live.record.spec["linux"]["resources"] == {
            "devices": [{"allow": False}],
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
            "memory": {"limit": 128 * MIB, "swap": 128 * MIB},
        }
        assert live.record.spec["linux"]["cgroupsPath"]

    async def test_the_change_is_stored(self, world: World) -> None:
        live = await world.container(resources=BEFORE)
        await update(world, cpu_shares=3)
        [data] = (await world.registry.containers._records.load()).values()
        assert ContainerRecord.decode(data) == live.record
        assert ContainerRecord.decode(data).config.linux.resources.cpu_shares == 3

    async def test_what_the_engine_refuses_is_not_recorded(self, world: World) -> None:
        live = await world.container(resources=BEFORE)
        world.tasks.tasks[APP].error = Unknown("device or resource busy")
        with pytest.raises(Unknown, match="busy"):
            await update(world, memory_limit_in_bytes=100 * MIB)
        assert shown(live) == BEFORE

    async def test_less_memory_than_is_in_use(self, world: World) -> None:
        """80 MiB are, of the 100 MiB that the cgroup counts; on v2 the kernel would make room by killing."""
        live = await world.container(resources=BEFORE)
        with pytest.raises(Unknown, match=f"{80 * MIB} bytes of memory in use"):
            await update(world, memory_limit_in_bytes=79 * MIB)
        assert shown(live) == BEFORE
        assert world.tasks.tasks[APP].updates == []
        await update(world, memory_limit_in_bytes=81 * MIB)
        assert shown(live).memory_limit_in_bytes == 81 * MIB

    @pytest.mark.parametrize("gone", [True, False])
    async def test_one_that_ends_meanwhile(self, world: World, gone: bool) -> None:
        await world.container()
        if gone:
            del world.tasks.tasks[APP]
        else:
            world.tasks.tasks[APP].error = NotFound("process already finished")
        with pytest.raises(FailedPrecondition, match=f"{APP} ended before"):
            await update(world, cpu_shares=5)

    async def test_the_last_one_asked_for_is_the_last_in_the_cgroup(self, world: World) -> None:
        live = await world.container()

        class Slow(FakeTask):
            async def update(self, resources: dict[str, Any], annotations: Any) -> None:
                await asyncio.sleep(0.001 * (3 - len(self.updates)))
                await super().update(resources, annotations)

        world.tasks.tasks[APP] = Slow()
        await asyncio.gather(*(update(world, cpu_shares=shares) for shares in (10, 20, 30)))
        assert [resources["cpu"]["shares"] for resources, _ in world.tasks.tasks[APP].updates] == [10, 20, 30]
        assert shown(live).cpu_shares == 30


class TestOthers:
    async def test_one_that_isnt_started_gets_them_at_its_start(self, world: World) -> None:
        live = await world.container(state=ContainerState.CREATED, resources=BEFORE)
        await update(world, memory_limit_in_bytes=128 * MIB)
        assert world.tasks.tasks[APP].updates == []
        assert live.record.spec["linux"]["resources"]["memory"] == {"limit": 128 * MIB, "swap": 128 * MIB}
        assert shown(live).memory_limit_in_bytes == 128 * MIB

    async def test_a_start_under_way_ends_first(self, world: World) -> None:
        live = await world.container(state=ContainerState.STARTING)
        async with world.locks.hold(APP):
            updating = asyncio.ensure_future(update(world, cpu_shares=5))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not updating.done()
            live.record = ContainerRecord(**{**vars(live.record), "state": ContainerState.RUNNING})
        await updating
        assert len(world.tasks.tasks[APP].updates) == 1

    async def test_one_that_has_ended(self, world: World) -> None:
        await world.container(state=ContainerState.EXITED)
        with pytest.raises(FailedPrecondition, match=f"{APP} has ended"):
            await update(world, cpu_shares=5)

    async def test_an_unknown_one(self, world: World) -> None:
        with pytest.raises(NotFound):
            await update(world, cpu_shares=5)

    @pytest.mark.parametrize("limits", [{"cpu_shares": -1}, {"cpu_period": 3}, {"memory_limit_in_bytes": 5}, {"unified": {"x": "y"}}])
    async def test_what_can_not_be_changes_nothing(self, world: World, limits: dict[str, Any]) -> None:
        live = await world.container(resources=BEFORE)
        with pytest.raises(InvalidArgument, match=r"^linux"):
            await update(world, **limits)
        assert shown(live) == BEFORE
        assert world.tasks.tasks[APP].updates == []

    async def test_windows(self, world: World) -> None:
        await world.container()
        request = cri.UpdateContainerResourcesRequest(container_id=APP, windows=cri.WindowsContainerResources())
        with pytest.raises(InvalidArgument, match="windows"):
            await update_container_resources(world.pods, request)
