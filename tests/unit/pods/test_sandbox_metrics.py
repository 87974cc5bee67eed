"""ListMetricDescriptors, ListPodSandboxMetrics and its stream, on fake cgroups."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path

import pytest

from agent.pods import sandbox_metrics
from agent.pods.container import ContainerState
from agent.pods.sandbox import SandboxState
from agent.snapshots.snapshotter import Usage
from cri.api import api_pb2 as cri
from tests.unit.pods.fakes import APP, POD, World
from tests.unit.stats import trees

MIB = 1 << 20
OTHER, SIDECAR = "ef" * 32, "12" * 32
LIMITS: dict[str, object] = {
    "devices": [],
    "cpu": {"shares": 512, "quota": 20_000, "period": 100_000},
    "memory": {"limit": 64 * MIB, "swap": 64 * MIB},
    "unified": {"memory.min": "4096"},
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.images.mountpoint = str(tmp_path)
    return world


async def descriptors(world: World) -> dict[str, cri.MetricDescriptor]:
    response = await sandbox_metrics.list_metric_descriptors(world.pods, cri.ListMetricDescriptorsRequest())
    return {entry.name: entry for entry in response.descriptors}


async def listed(world: World) -> list[cri.PodSandboxMetrics]:
    answer = await sandbox_metrics.list_pod_sandbox_metrics(world.pods, cri.ListPodSandboxMetricsRequest())
    return list(cri.ListPodSandboxMetricsResponse.FromString(answer).pod_metrics)


async def one(world: World) -> dict[str, list[cri.Metric]]:
    [pod] = await listed(world)
    [container] = pod.container_metrics
    assert container.container_id == APP
    return by_name(container.metrics)


def by_name(metrics: object) -> dict[str, list[cri.Metric]]:
    found = defaultdict(list)
    for metric in metrics:  # type: ignore[attr-defined]  # a repeated field, which has no name of its own
        found[metric.name.removeprefix("container_")].append(metric)
    return dict(found)


def spec(limits: dict[str, object]) -> dict[str, object]:
    return {"linux": {"resources": limits}}


async def test_every_metric_has_a_descriptor_with_its_labels_in_order(world: World) -> None:
    await world.sandbox()
    await world.container(image_name="registry.k8s.io/app:1", started_at=17_000_000_000, spec=spec(LIMITS))
    world.images.usages[APP] = Usage(4096, 3, 1_700_000_000.5)
    (world.cgroup(f"/kubepods/{POD}/{APP}") / "cgroup.procs").write_text(f"{os.getpid()}\n")
    known = await descriptors(world)
    [pod] = await listed(world)
    base = {"namespace": "default", "pod": "web-0"}
    expected = {pod.pod_sandbox_id: {**base, "container": "", "id": POD, "image": ""}}
    expected[APP] = {**base, "container": APP, "id": APP, "image": "registry.k8s.io/app:1"}
    for owner, metrics in ((POD, pod.metrics), (APP, pod.container_metrics[0].metrics)):
        assert metrics
        for metric in metrics:
            keys = known[metric.name].label_keys
            labels = dict(zip(keys, metric.label_values, strict=True))
            assert {key: labels[key] for key in expected[owner]} == expected[owner]


async def test_a_containers_numbers(world: World) -> None:
    await world.sandbox()
    await world.container(started_at=17_500_000_000, spec=spec(LIMITS))
    world.images.usages[APP] = Usage(4096, 3, 1_700_000_000.5)
    (world.cgroup(f"/kubepods/{POD}/{APP}") / "cgroup.procs").write_text(f"{os.getpid()}\n")
    before = int(time.time())
    found = await one(world)
    numbers = {name: metrics[0].value.value for name, metrics in found.items()}
    kinds = {name: metrics[0].metric_type for name, metrics in found.items()}
    assert (kinds["memory_rss"], kinds["cpu_usage_seconds_total"]) == (cri.GAUGE, cri.COUNTER)
    assert before <= numbers["last_seen"] <= time.time()
    for name, number in {
        "start_time_seconds": 17,
        "spec_cpu_shares": 512,
        "spec_cpu_quota": 20_000,
        "spec_cpu_period": 100_000,
        "spec_memory_limit_bytes": 64 * MIB,
        "spec_memory_swap_limit_bytes": 64 * MIB,
        "spec_memory_reservation_limit_bytes": 4096,
        "memory_working_set_bytes": 80 * MIB,
        "cpu_usage_seconds_total": 1,
        "processes": 1,
        "threads": 7,
        "fs_usage_bytes": 4096,
    }.items():
        assert numbers[name] == number, name
    assert numbers["file_descriptors"] > 0
    [layer] = found["fs_usage_bytes"]
    [limit] = found["fs_limit_bytes"]
    assert layer.label_values == limit.label_values
    assert layer.timestamp == 1_700_000_000_500_000_000, "that was measured then"
    assert {metric.timestamp for name, metrics in found.items() if name != "fs_usage_bytes" for metric in metrics} == {0}, (
        "and the rest now"
    )


async def test_limits_that_are_none(world: World) -> None:
    await world.sandbox()
    await world.container(
        spec=spec({"devices": [], "memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "unified": {"memory.min": "max"}})
    )
    found = await one(world)
    for name in ("limit", "swap_limit", "reservation_limit"):
        assert [metric.value.value for metric in found[f"spec_memory_{name}_bytes"]] == [0]
    assert not {"spec_cpu_quota", "spec_cpu_shares", "spec_cpu_period"} & found.keys()


async def test_a_pods_network(world: World) -> None:
    await world.sandbox()
    [pod] = await listed(world)
    numbers = {(metric.name.removeprefix("container_network_"), metric.label_values[-1]): metric.value.value for metric in pod.metrics}
    assert len(numbers) == 16
    assert numbers["receive_bytes_total", "eth0"] == 100
    assert numbers["receive_packets_total", "eth0"] == 2
    assert numbers["receive_errors_total", "eth0"] == 3
    assert numbers["receive_packets_dropped_total", "eth0"] == 0
    assert numbers["transmit_bytes_total", "eth0"] == 400
    assert numbers["transmit_packets_total", "eth0"] == 5
    assert numbers["transmit_errors_total", "eth0"] == 6
    assert numbers["transmit_bytes_total", "net1"] == 8
    assert not pod.container_metrics


async def test_the_nodes_network_is_not_the_pods(world: World) -> None:
    await world.sandbox(pins={})
    [pod] = await listed(world)
    assert not pod.metrics


async def test_what_was_not_measured_or_has_no_file_system_is_absent(world: World) -> None:
    await world.sandbox()
    await world.container()
    assert "fs_usage_bytes" not in await one(world), "not measured yet"
    world.images.usages[APP] = Usage(4096, 3, 1.0)
    world.images.mountpoint = "/nowhere"
    assert not [name for name in await one(world) if name.startswith("fs_")]


async def test_one_that_vanishes_is_left_out_and_costs_no_other_anything(world: World) -> None:
    await world.sandbox()
    await world.container()
    await world.container(OTHER)
    world.vanish(f"/kubepods/{POD}/{OTHER}")
    assert list(await one(world))


@pytest.mark.parametrize("state", sorted(set(ContainerState) - {ContainerState.RUNNING}))
async def test_one_that_doesnt_run_is_left_out(world: World, state: ContainerState) -> None:
    await world.sandbox()
    await world.container(state=state)
    [pod] = await listed(world)
    assert not pod.container_metrics


async def test_one_in_a_sandbox_of_its_own_has_what_is_known_here(world: World) -> None:
    await world.sandbox()
    await world.container(cgroups={}, started_at=17_000_000_000)
    found = await one(world)
    assert {"last_seen", "start_time_seconds", "spec_memory_limit_bytes", "fs_limit_bytes"} <= found.keys()
    assert "cpu_usage_seconds_total" not in found


@pytest.mark.parametrize("state", sorted(set(SandboxState) - {SandboxState.READY}))
async def test_a_sandbox_that_isnt_ready(world: World, state: SandboxState) -> None:
    await world.sandbox(state=state)
    assert await listed(world) == []


async def test_a_stream_is_the_list_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_metrics, "_PER_MESSAGE", 2)
    for pod, container in ((POD, APP), (OTHER, SIDECAR), ("77" * 32, "78" * 32)):
        await world.sandbox(pod)
        await world.container(container, sandbox_id=pod)
        trees.fill(world.cgroup(f"/kubepods/{pod}/{container}"), trees.V2_FILES)
    stream = sandbox_metrics.stream_pod_sandbox_metrics(world.pods, cri.StreamPodSandboxMetricsRequest())
    messages = [cri.StreamPodSandboxMetricsResponse.FromString(message).pod_sandbox_metrics async for message in stream]
    assert [len(pods) for pods in messages] == [2, 1]
    assert [pod.pod_sandbox_id for pods in messages for pod in pods] == [POD, OTHER, "77" * 32]
    assert all(len(pod.container_metrics) == 1 for pods in messages for pod in pods)
