"""Whose exit is the OOM killer's: the cgroup is asked, and a shim's word that comes before or after counts as well."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent.config.handlers import RuntimeHandler
from agent.events import Exit, TaskOOM
from agent.pods import exits, oom
from agent.pods.registry import Container
from tests.unit.pods.fakes import APP, POD, World

KILLED = 137


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def kills(world: World, number: int) -> None:
    (world.cgroup(f"/kubepods/{POD}/{APP}") / "memory.events").write_text(f"low 0\noom 9\noom_kill {number}\n")


async def exited(world: World, live: Container, status: int) -> str:
    await exits.record_exit(world.pods, live, Exit(status, time.time_ns()))
    return live.record.reason


@pytest.mark.parametrize(
    ("status", "killed", "reason"),
    [
        (KILLED, 1, "OOMKilled"),
        pytest.param(KILLED, 0, "Error", id="killed by somebody else"),
        pytest.param(3, 1, "Error", id="only a child was killed"),
        pytest.param(0, 1, "Completed", id="nobody minded"),
    ],
)
async def test_the_cgroup_says_so(world: World, status: int, killed: int, reason: str) -> None:
    live = await world.container()
    kills(world, killed)
    assert await exited(world, live, status) == reason


async def test_a_cgroup_that_is_gone_says_nothing(world: World) -> None:
    live = await world.container()
    world.vanish(f"/kubepods/{POD}/{APP}")
    assert await exited(world, live, KILLED) == "Error"


class TestScopes:
    """systemd removes a container's scope when its last process has gone; the pod's slice goes on counting what was in it."""

    OTHER = "ef" * 32

    @pytest.fixture
    async def live(self, world: World) -> Container:
        world.handlers["runc"] = RuntimeHandler("runc", systemd_cgroup=True)
        await world.sandbox()
        self.of_pod(world, 5)
        return await self.started(world, APP)

    def of_pod(self, world: World, number: int) -> None:
        (world.cgroup(f"/kubepods/{POD}") / "memory.events").write_text(f"oom_kill {number}\n")

    async def started(self, world: World, container_id: str) -> Container:
        live = await world.container(container_id)
        await oom.prepare(world.pods, live)
        return live

    async def ended(self, world: World, live: Container) -> str:
        world.vanish(f"/kubepods/{POD}/{live.record.id}")
        return await exited(world, live, KILLED)

    async def test_what_the_pod_counts_since_the_start_was_its_own(self, world: World, live: Container) -> None:
        self.of_pod(world, 6)
        assert await self.ended(world, live) == "OOMKilled"

    async def test_what_it_counted_before_was_not(self, world: World, live: Container) -> None:
        assert await self.ended(world, live) == "Error"

    async def test_nor_what_a_living_neighbour_accounts_for(self, world: World, live: Container) -> None:
        await self.started(world, self.OTHER)
        (world.cgroup(f"/kubepods/{POD}/{self.OTHER}") / "memory.events").write_text("oom_kill 1\n")
        self.of_pod(world, 6)
        assert await self.ended(world, live) == "Error"

    async def test_each_is_blamed_for_its_own(self, world: World, live: Container) -> None:
        other = await self.started(world, self.OTHER)
        self.of_pod(world, 6)
        assert await self.ended(world, live) == "OOMKilled"
        assert await self.ended(world, other) == "Error"

    async def test_of_one_that_an_earlier_daemon_started_the_shim_may_say_so(self, world: World, live: Container) -> None:
        live.pod_oom_kills = None
        self.of_pod(world, 6)
        assert await self.ended(world, live) == "Error"

    async def test_nothing_is_asked_with_the_cgroupfs_driver(self, world: World, live: Container) -> None:
        world.handlers["runc"] = RuntimeHandler("runc")
        self.of_pod(world, 6)
        assert await self.ended(world, live) == "Error"


async def test_a_cgroup_that_cant_be_read_keeps_no_exit_from_being_recorded(world: World) -> None:
    live = await world.container()
    (world.cgroup(f"/kubepods/{POD}/{APP}") / "memory.events").mkdir()  # EISDIR: no kernel's answer
    assert await exited(world, live, KILLED) == "Error"
    assert live.exited.is_set()


async def test_of_one_in_a_sandbox_of_its_own_the_shim_says_so(world: World) -> None:
    live = await world.container(cgroups={})
    await exits._act(world.pods, TaskOOM(APP))
    assert await exited(world, live, KILLED) == "OOMKilled"


async def test_a_word_that_comes_late_corrects_the_exit(world: World) -> None:
    live = await world.container(cgroups={})
    assert await exited(world, live, KILLED) == "Error"
    await exits._act(world.pods, TaskOOM(APP))
    assert live.record.reason == "OOMKilled"


async def test_a_word_about_one_that_ended_otherwise_corrects_nothing(world: World) -> None:
    live = await world.container()
    assert await exited(world, live, 3) == "Error"
    await exits._act(world.pods, TaskOOM(APP))
    assert live.record.reason == "Error"


async def test_a_word_about_nobody(world: World) -> None:
    await exits._act(world.pods, TaskOOM("nope"))
