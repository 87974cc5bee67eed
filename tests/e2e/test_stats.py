"""What containers and pods use, as a kubelet sees it: numbers that go where they should under load, of the right container."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.node import CGROUPS

pytestmark = [pytest.mark.e2e, one_pair]

MIB = 1 << 20
BUSY = ["sh", "-c", "while :; do :; done"]


def stats(kubelet: Client, container: str) -> cri.ContainerStats:
    answer: cri.ContainerStatsResponse = kubelet.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container))
    return answer.stats


def listed(kubelet: Client, **wanted: Any) -> dict[str, cri.ContainerStats]:
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(**wanted))
    return {found.attributes.id: found for found in kubelet.runtime.ListContainerStats(request).stats}


def pod_stats(kubelet: Client, pod: Pod) -> cri.PodSandboxStats:
    answer: cri.PodSandboxStatsResponse = kubelet.runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod.id))
    return answer.stats


def nano_cores(usage: cri.CpuUsage) -> int:
    return usage.usage_nano_cores.value


class TestContainers:
    def test_a_busy_one_uses_cpu_and_an_idle_one_doesnt(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        busy, idle = kubelet.run_container(pod, BUSY), kubelet.run_container(pod)
        first = listed(kubelet)
        until(lambda: nano_cores(stats(kubelet, busy).cpu) > 50_000_000, what="a twentieth of a CPU is used")
        second = listed(kubelet)
        assert second[busy].cpu.usage_core_nano_seconds.value > first[busy].cpu.usage_core_nano_seconds.value + 10_000_000
        assert second[busy].cpu.timestamp > first[busy].cpu.timestamp > time.time_ns() - 60 * 10**9
        assert nano_cores(second[idle].cpu) < 10_000_000 < 50_000_000 < nano_cores(second[busy].cpu)

    def test_the_first_sample_has_no_rate(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())
        assert not stats(kubelet, container).cpu.HasField("usage_nano_cores")

    def test_memory_that_is_held_and_memory_that_can_be_had_back(self, kubelet: Client) -> None:
        linux = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=256 * MIB))
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod, ["sh", "-c", "x=$(head -c 30000000 /dev/zero | tr '\\0' x); sleep 1000; true"], linux=linux)
        held = until(
            lambda: found if (found := stats(kubelet, container).memory).rss_bytes.value > 30_000_000 else None, what="30 MB are held"
        )
        assert held.rss_bytes.value <= held.usage_bytes.value < 256 * MIB
        assert held.working_set_bytes.value >= held.rss_bytes.value
        assert held.available_bytes.value == 256 * MIB - held.working_set_bytes.value
        assert held.page_faults.value > 1000
        kubelet.exec_sync(container, "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=40")
        cached = stats(kubelet, container).memory
        assert cached.usage_bytes.value > cached.rss_bytes.value + 35 * MIB, "the page cache counts as use"
        assert cached.working_set_bytes.value < cached.usage_bytes.value - 20 * MIB, "but what isn't in use can be had back"
        assert cached.page_faults.value > held.page_faults.value

    def test_without_a_limit_nothing_is_available(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())
        assert not stats(kubelet, container).memory.HasField("available_bytes")

    def test_pressure_where_the_kernel_tells_it(self, kubelet: Client) -> None:
        container = kubelet.run_container(kubelet.run_pod())
        found = stats(kubelet, container)
        told = (CGROUPS / "cpu.pressure").exists()
        assert (found.cpu.HasField("psi"), found.memory.HasField("psi"), found.HasField("io")) == (told, told, told)

    def test_what_is_written_is_measured_from_time_to_time(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod)
        kubelet.exec_sync(container, "sh", "-c", "mkdir /d; cd /d; dd if=/dev/zero of=big bs=1M count=20; touch a b c")
        layer = until(
            lambda: found if (found := stats(kubelet, container).writable_layer).used_bytes.value > 20_000_000 else None,
            what="20 MB are written",
        )
        assert layer.used_bytes.value < 30 * MIB
        assert 5 <= layer.inodes_used.value < 20
        assert layer.timestamp > time.time_ns() - 60 * 10**9
        [filesystem] = kubelet.images.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems
        assert layer.fs_id == filesystem.fs_id
        kubelet.stop(container)
        assert stats(kubelet, container).writable_layer.used_bytes == layer.used_bytes, "it is still there when the container has ended"

    def test_attributes_are_those_of_the_container(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod, name="web", attempt=3, labels={"a": "b"}, annotations={"c": "d"})
        [found] = kubelet.containers()
        attributes = stats(kubelet, container[:12]).attributes
        for field in ("id", "metadata", "labels", "annotations"):
            assert getattr(attributes, field) == getattr(found, field)

    def test_one_that_doesnt_run_has_no_numbers_rather_than_zeros(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        created, ended = kubelet.create_container(pod), kubelet.run_container(pod, ["true"])
        kubelet.wait_exit(ended)
        for container in (created, ended):
            found = stats(kubelet, container)
            assert found.attributes.id == container
            assert not any(found.HasField(part) for part in ("cpu", "memory", "swap", "io"))

    def test_an_unknown_one(self, kubelet: Client) -> None:
        with refused(grpc.StatusCode.NOT_FOUND, "'nope'"):
            stats(kubelet, "nope")


class TestLists:
    def test_many_containers_each_with_its_own_numbers(self, kubelet: Client) -> None:
        pods = [kubelet.run_pod(labels={"number": str(number)}) for number in range(2)]
        containers = {kubelet.run_container(pod, labels={"number": str(number)}): pod for number, pod in enumerate(pods * 10)}
        found = listed(kubelet)
        assert found.keys() == containers.keys()
        assert all(each.cpu.usage_core_nano_seconds.value and each.memory.usage_bytes.value for each in found.values())
        assert listed(kubelet, pod_sandbox_id=pods[0].id).keys() == {each for each, of in containers.items() if of is pods[0]}
        [number_7] = listed(kubelet, label_selector={"number": "7"})
        assert containers[number_7] is pods[1]
        assert listed(kubelet, id=number_7[:20]).keys() == {number_7}
        assert listed(kubelet, id=number_7, pod_sandbox_id=pods[0].id) == {}

        request = cri.ListPodSandboxStatsRequest()
        of_pods = {each.attributes.id: each for each in kubelet.runtime.ListPodSandboxStats(request).stats}
        assert of_pods.keys() == {pod.id for pod in pods}
        for pod in pods:
            parts = {part.attributes.id for part in of_pods[pod.id].linux.containers}
            assert parts == {each for each, of in containers.items() if of is pod}

    def test_streams_say_what_lists_say(self, kubelet: Client) -> None:
        pods = [kubelet.run_pod(labels={"number": str(number)}) for number in range(3)]
        for pod in pods:
            kubelet.run_container(pod, labels=pod.config.labels)
        runtime, wanted = kubelet.runtime, {"number": "1"}

        def streamed(messages: Iterator[Any], field: str) -> list[Any]:
            return [item for message in messages for item in getattr(message, field)]

        assert streamed(runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest()), "pod_sandboxes") == kubelet.pods()
        assert streamed(runtime.StreamContainers(cri.StreamContainersRequest()), "containers") == kubelet.containers()
        images = list(kubelet.images.ListImages(cri.ListImagesRequest()).images)
        assert streamed(kubelet.images.StreamImages(cri.StreamImagesRequest()), "images") == images
        some_pods = cri.StreamPodSandboxesRequest(filter=cri.PodSandboxFilter(label_selector=wanted))
        assert [pod.id for pod in streamed(runtime.StreamPodSandboxes(some_pods), "pod_sandboxes")] == [pods[1].id]
        none = cri.StreamContainersRequest(filter=cri.ContainerFilter(id="0" * 64))
        assert list(runtime.StreamContainers(none)) == []
        all_stats = streamed(runtime.StreamContainerStats(cri.StreamContainerStatsRequest()), "container_stats")
        assert [each.attributes.id for each in all_stats] == [each.id for each in kubelet.containers()]
        assert all(each.memory.usage_bytes.value for each in all_stats)
        some_stats = cri.StreamPodSandboxStatsRequest(filter=cri.PodSandboxStatsFilter(label_selector=wanted))
        [found] = streamed(runtime.StreamPodSandboxStats(some_stats), "pod_sandbox_stats")
        assert found.attributes.id == pods[1].id
        assert found.linux.memory.usage_bytes.value

    def test_containers_that_come_and_go_while_they_are_read(self, kubelet: Client) -> None:
        """No call fails, and nobody is said to use nothing: who is gone has no numbers."""
        pod = kubelet.run_pod()
        stays = kubelet.run_container(pod)
        with in_the_background(lambda: churn(kubelet, pod)) as running:
            looks = 0
            while running():
                looks += 1
                found = listed(kubelet)
                assert found[stays].memory.usage_bytes.value
                for each in found.values():
                    assert each.HasField("cpu") == each.HasField("memory")
                    assert not each.HasField("memory") or each.memory.usage_bytes.value
                [of_pod] = kubelet.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest()).stats
                assert stays in {each.attributes.id for each in of_pod.linux.containers}
        assert looks > 10


def churn(kubelet: Client, pod: Pod) -> None:
    for number in range(12):
        container = kubelet.run_container(pod, ["sh", "-c", "exit 1"] if number % 2 else BUSY)
        if number % 3:
            kubelet.stop(container)
        kubelet.remove(container)


@contextmanager
def in_the_background(work: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Runs `work` in a thread; yields whether it still runs. Its failure is the test's."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield thread.is_alive
    finally:
        thread.join()
    assert not failures, failures


class TestPods:
    def test_the_whole_is_at_least_its_parts(self, kubelet: Client) -> None:
        pod = kubelet.run_pod(labels={"a": "b"}, annotations={"c": "d"})
        containers = [kubelet.run_container(pod, BUSY), kubelet.run_container(pod, ["sh", "-c", "sleep 1000 & sleep 1000; true"])]
        until(lambda: nano_cores(pod_stats(kubelet, pod).linux.cpu) > 50_000_000, what="a twentieth of a CPU is used")
        found = pod_stats(kubelet, pod)
        assert (found.attributes.id, found.attributes.metadata) == (pod.id, pod.config.metadata)
        assert (dict(found.attributes.labels), dict(found.attributes.annotations)) == ({"a": "b"}, {"c": "d"})
        parts = found.linux.containers
        assert {part.attributes.id for part in parts} == set(containers)
        assert found.linux.memory.usage_bytes.value >= sum(part.memory.working_set_bytes.value for part in parts)
        later = pod_stats(kubelet, pod).linux.cpu.usage_core_nano_seconds.value
        assert later >= sum(part.cpu.usage_core_nano_seconds.value for part in parts)
        assert found.linux.process.process_count.value == 4

    def test_network(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod)
        before = pod_stats(kubelet, pod).linux.network
        assert before.default_interface.name == "eth0"
        assert [each.name for each in before.interfaces if each.name in ("lo", "eth0")] == []
        gateway = kubelet.exec_sync(container, "sh", "-c", "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'").stdout.decode().strip()
        kubelet.exec_sync(container, "ping", "-c", "3", "-s", "1200", "-i", "0.2", gateway)
        after = pod_stats(kubelet, pod).linux.network
        assert after.default_interface.tx_bytes.value >= before.default_interface.tx_bytes.value + 3600
        assert after.default_interface.rx_bytes.value >= before.default_interface.rx_bytes.value + 3600
        assert after.timestamp > before.timestamp
        assert (after.default_interface.rx_errors.value, after.default_interface.tx_errors.value) == (0, 0)

    def test_the_nodes_network_is_not_the_pods(self, kubelet: Client) -> None:
        pod = kubelet.run_pod(namespaces=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER, ipc=cri.POD))
        assert not pod_stats(kubelet, pod).linux.HasField("network")

    def test_one_that_isnt_ready_is_not_measured(self, kubelet: Client) -> None:
        stopped, ready = kubelet.run_pod(), kubelet.run_pod()
        kubelet.stop_pod(stopped)
        assert [each.attributes.id for each in kubelet.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest()).stats] == [ready.id]
        with refused(grpc.StatusCode.FAILED_PRECONDITION, stopped.id, "stopped"):
            pod_stats(kubelet, stopped)

    def test_a_sandbox_that_is_a_task_counts(self, kubelet: Client) -> None:
        pod = kubelet.run_pod(handler="task")
        assert pod_stats(kubelet, pod).linux.process.process_count.value == 1
