"""ContainerStats and PodSandboxStats and their lists, on fake cgroups."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent import timeouts
from agent.api.cgroup2.stats import metrics_pb2 as v2
from agent.errdefs import DeadlineExceeded, FailedPrecondition, NotFound
from agent.pods import container_stats, sandbox_stats
from agent.pods.container import ContainerState
from agent.pods.sandbox import Pin, SandboxState
from agent.snapshots.snapshotter import Usage
from cri.api import api_pb2 as cri
from tests.unit.pods.fakes import APP, POD, World

MIB = 1 << 20
OTHER, SIDECAR = "ef" * 32, "12" * 32


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def one(world: World, container_id: str = APP) -> cri.ContainerStats:
    return (await container_stats.container_stats(world.pods, cri.ContainerStatsRequest(container_id=container_id))).stats


async def listed(world: World, **wanted: object) -> list[str]:
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(**wanted))  # type: ignore[arg-type]  # fields by name
    return [stats.attributes.id for stats in (await container_stats.list_container_stats(world.pods, request)).stats]


async def of_pod(world: World, sandbox_id: str = POD) -> cri.LinuxPodSandboxStats:
    request = cri.PodSandboxStatsRequest(pod_sandbox_id=sandbox_id)
    return (await sandbox_stats.pod_sandbox_stats(world.pods, request)).stats.linux


async def listed_pods(world: World, **wanted: object) -> list[str]:
    request = cri.ListPodSandboxStatsRequest(filter=cri.PodSandboxStatsFilter(**wanted))  # type: ignore[arg-type]  # fields by name
    return [stats.attributes.id for stats in (await sandbox_stats.list_pod_sandbox_stats(world.pods, request)).stats]


def numbers(stats: cri.ContainerStats) -> set[str]:
    return {part for part in ("cpu", "memory", "swap", "io", "writable_layer") if stats.HasField(part)}


class TestContainer:
    async def test_all_of_it(self, world: World) -> None:
        live = await world.container(labels={"app": "web"})
        world.images.usages[APP] = Usage(4096, 3, 1_700_000_000.5)
        stats = await one(world)
        assert stats.attributes.id == APP
        assert stats.attributes.metadata == live.record.config.metadata
        assert dict(stats.attributes.labels) == {"app": "web"}
        assert dict(stats.attributes.annotations) == {"note": "app"}
        assert stats.cpu.usage_core_nano_seconds.value == 1_500_000_000
        assert stats.cpu.psi == cri.PsiStats(Some=cri.PsiData(Total=12_345_000, Avg10=1.5, Avg60=0.25, Avg300=0.05), Full=cri.PsiData())
        memory = stats.memory
        assert memory.usage_bytes.value == 100 * MIB
        assert memory.working_set_bytes.value == 80 * MIB
        assert memory.available_bytes.value == 120 * MIB
        assert memory.rss_bytes.value == 30 * MIB
        assert (memory.page_faults.value, memory.major_page_faults.value) == (700, 3)
        assert (memory.psi.Some.Total, memory.psi.Full.Total) == (1000, 2000)
        assert (stats.swap.swap_usage_bytes.value, stats.swap.swap_available_bytes.value) == (4096, 4096)
        assert (stats.io.psi.Some.Avg300, stats.io.psi.Full.Avg300) == (99.99, 12.34)
        assert stats.cpu.timestamp == memory.timestamp == stats.swap.timestamp == stats.io.timestamp > 0
        layer = stats.writable_layer
        assert (layer.timestamp, layer.used_bytes.value, layer.inodes_used.value) == (1_700_000_000_500_000_000, 4096, 3)
        assert layer.fs_id.mountpoint == world.images.mountpoint

    async def test_a_rate_needs_a_second_look(self, world: World) -> None:
        live = await world.container()
        first = await one(world)
        assert not first.cpu.HasField("usage_nano_cores")
        live.meter.rate.update(1, 0)  # long ago
        (world.cgroup(f"/kubepods/{POD}/{APP}") / "cpu.stat").write_text("usage_usec 9000000\n")
        second = await one(world)
        assert second.cpu.HasField("usage_nano_cores")

    async def test_what_isnt_limited_or_counted_is_left_out(self, world: World) -> None:
        await world.container()
        directory = world.cgroup(f"/kubepods/{POD}/{APP}")
        for name in ("memory.swap.current", "io.pressure", "cpu.pressure", "memory.pressure"):
            (directory / name).unlink()
        (directory / "memory.max").write_text("max\n")
        stats = await one(world)
        assert numbers(stats) == {"cpu", "memory"}
        assert not stats.memory.HasField("available_bytes")
        assert not stats.memory.HasField("psi")

    @pytest.mark.parametrize("state", sorted(set(ContainerState) - {ContainerState.RUNNING}))
    async def test_one_that_doesnt_run_has_only_what_it_has_written(self, world: World, state: ContainerState) -> None:
        await world.container(state=state)
        world.images.usages[APP] = Usage(4096, 3, 1.0)
        stats = await one(world)
        assert stats.attributes.id == APP
        assert numbers(stats) == {"writable_layer"}

    async def test_one_that_vanishes_has_no_numbers(self, world: World) -> None:
        await world.container()
        world.vanish(f"/kubepods/{POD}/{APP}")
        assert numbers(await one(world)) == set()

    async def test_an_unknown_one(self, world: World) -> None:
        with pytest.raises(NotFound):
            await one(world)


class TestContainersInSandboxesOfTheirOwn:
    async def test_are_asked_through_their_shim(self, world: World) -> None:
        await world.container(cgroups={})
        metrics = v2.Metrics(cpu=v2.CPUStat(usage_usec=5), memory=v2.MemoryStat(usage=7))
        world.tasks.tasks[APP].answer.Pack(metrics)
        stats = await one(world)
        assert (stats.cpu.usage_core_nano_seconds.value, stats.memory.usage_bytes.value) == (5000, 7)

    async def test_whose_shim_doesnt_answer_cost_nobody_else_anything(self, world: World) -> None:
        await world.container()
        await world.container(OTHER, cgroups={})
        await world.container(SIDECAR, cgroups={})
        world.tasks.tasks[OTHER].error = DeadlineExceeded("no answer")
        del world.tasks.tasks[SIDECAR]
        response = await container_stats.list_container_stats(world.pods, cri.ListContainerStatsRequest())
        assert {stats.attributes.id: bool(numbers(stats)) for stats in response.stats} == {APP: True, OTHER: False, SIDECAR: False}


class TestList:
    async def test_filters(self, world: World) -> None:
        await world.container(labels={"app": "web", "tier": "1"})
        await world.container(OTHER, sandbox_id="99" * 32, labels={"app": "web"})
        assert await listed(world) == [APP, OTHER]
        assert await listed(world, id=OTHER) == await listed(world, id=OTHER[:8]) == [OTHER]
        assert await listed(world, pod_sandbox_id=POD) == [APP]
        assert await listed(world, label_selector={"app": "web"}) == [APP, OTHER]
        assert await listed(world, label_selector={"tier": "1"}) == [APP]
        assert await listed(world, id=OTHER, label_selector={"tier": "1"}) == []

    async def test_a_stream_is_the_list_in_parts(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(container_stats, "_PER_MESSAGE", 2)
        for container_id in (APP, OTHER, SIDECAR):
            await world.container(container_id)
        stream = container_stats.stream_container_stats(world.pods, cri.StreamContainerStatsRequest())
        assert [[stats.attributes.id for stats in message.container_stats] async for message in stream] == [[APP, OTHER], [SIDECAR]]


class TestPod:
    async def test_all_of_it(self, world: World) -> None:
        await world.sandbox(labels={"app": "web"})
        await world.container()
        await world.container(OTHER, state=ContainerState.EXITED)
        await world.container(SIDECAR, sandbox_id="99" * 32)
        linux = await of_pod(world)
        assert linux.cpu.usage_core_nano_seconds.value == 1_500_000_000
        assert linux.memory.working_set_bytes.value == 80 * MIB
        assert linux.process.process_count.value == 7
        assert linux.io.psi.Some.Total == 3000
        assert [(stats.attributes.id, "cpu" in numbers(stats)) for stats in linux.containers] == [(APP, True), (OTHER, False)]
        assert linux.network.default_interface == cri.NetworkInterfaceUsage(
            name="eth0",
            rx_bytes=cri.UInt64Value(value=100),
            rx_errors=cri.UInt64Value(value=3),
            tx_bytes=cri.UInt64Value(value=400),
            tx_errors=cri.UInt64Value(value=6),
        )
        assert [interface.name for interface in linux.network.interfaces] == ["net1"]

    async def test_without_eth0_the_first_interface_is_the_default(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        await world.sandbox()
        monkeypatch.setattr("agent.pods.usage._DEFAULT_INTERFACE", "none")
        assert (await of_pod(world)).network.default_interface.name == "eth0"

    async def test_the_network_of_the_node_is_not_looked_at(self, world: World) -> None:
        await world.sandbox(pins={"ipc": Pin("/run/ipc", 1)})
        assert not (await of_pod(world)).HasField("network")
        assert world.namespaces.looked_at == []

    async def test_a_pin_that_is_gone_costs_the_network_alone(self, world: World) -> None:
        await world.sandbox()
        world.namespaces.gone.add(Path(f"/run/netns/{POD}"))
        linux = await of_pod(world)
        assert not linux.HasField("network")
        assert linux.HasField("memory")

    @pytest.mark.parametrize("stuck", [True, False])
    async def test_a_network_that_cant_be_asked_costs_its_numbers_alone(
        self, world: World, monkeypatch: pytest.MonkeyPatch, stuck: bool
    ) -> None:
        async def counters(pins: list[Path]) -> list[bytes | None]:
            if stuck:
                await asyncio.Event().wait()
            raise OSError(5, "I/O error")

        await world.sandbox()
        monkeypatch.setattr(world.namespaces, "interface_counters", counters)
        monkeypatch.setattr(timeouts, "STATS", 0.2)
        linux = await of_pod(world)
        assert not linux.HasField("network")
        assert linux.HasField("memory")

    async def test_a_cgroup_that_is_gone_costs_its_numbers_alone(self, world: World) -> None:
        await world.sandbox()
        world.vanish(f"/kubepods/{POD}")
        linux = await of_pod(world)
        assert not any(linux.HasField(part) for part in ("cpu", "memory", "process", "io"))
        assert linux.HasField("network")

    async def test_a_handler_that_was_configured_once(self, world: World) -> None:
        await world.sandbox(handler="of yesterday")
        assert (await of_pod(world)).process.process_count.value == 7

    @pytest.mark.parametrize("state", sorted(set(SandboxState) - {SandboxState.READY}))
    async def test_one_that_isnt_ready(self, world: World, state: SandboxState) -> None:
        await world.sandbox(state=state)
        with pytest.raises(FailedPrecondition, match=f"{POD} is {state}"):
            await of_pod(world)
        assert await listed_pods(world) == []

    async def test_an_unknown_one(self, world: World) -> None:
        with pytest.raises(NotFound):
            await of_pod(world)

    async def test_filters_and_stream(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox_stats, "_PER_MESSAGE", 1)
        await world.sandbox(labels={"app": "web"})
        await world.sandbox(OTHER, labels={"app": "db"})
        assert await listed_pods(world) == [POD, OTHER]
        assert await listed_pods(world, id=OTHER[:5]) == [OTHER]
        assert await listed_pods(world, label_selector={"app": "web"}) == [POD]
        stream = sandbox_stats.stream_pod_sandbox_stats(world.pods, cri.StreamPodSandboxStatsRequest())
        assert [[stats.attributes.id for stats in message.pod_sandbox_stats] async for message in stream] == [[POD], [OTHER]]

    async def test_containers_that_go_while_a_list_is_read(self, world: World) -> None:
        await world.sandbox()
        live = await world.container()
        reading = asyncio.ensure_future(of_pod(world))
        await asyncio.sleep(0)
        await world.registry.containers.remove(live)
        assert [stats.attributes.id for stats in (await reading).containers] == [APP]
