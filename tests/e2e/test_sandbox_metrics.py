"""The metrics that a kubelet passes on to Prometheus, of real containers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, until
from tests.e2e.conftest import one_pair
from tests.e2e.node import CGROUPS
from tests.e2e.races import mute
from tests.e2e.test_stats import BUSY, MIB, churn, in_the_background

pytestmark = [pytest.mark.e2e, one_pair]

WHERE_COUNTED = ("pressure_", "hugetlb_", "blkio_", "fs_reads", "fs_writes", "memory_swap")
"""Metrics that a node may not have."""

Labels = tuple[str, ...]
Numbers = dict[str, dict[Labels, int]]


def listed(kubelet: Client) -> dict[str, cri.PodSandboxMetrics]:
    answer = kubelet.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest())
    return {found.pod_sandbox_id: found for found in answer.pod_metrics}


def descriptors(kubelet: Client) -> dict[str, list[str]]:
    answer = kubelet.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest())
    return {found.name: list(found.label_keys) for found in answer.descriptors}


def of_container(kubelet: Client, pod: Pod, container: str) -> Numbers:
    [found] = [found for found in listed(kubelet)[pod.id].container_metrics if found.container_id == container]
    return numbers(found.metrics)


def numbers(metrics: Iterable[cri.Metric]) -> Numbers:
    """By name without `container_`, then by the labels that are the metric's own."""
    found: Numbers = defaultdict(dict)
    for metric in metrics:
        found[metric.name.removeprefix("container_")][tuple(metric.label_values[5:])] = metric.value.value
    return found


def one(found: Numbers, name: str) -> int:
    [number] = found[name].values()
    return number


def limits(quota: int = 50_000) -> cri.LinuxContainerConfig:
    resources = cri.LinuxContainerResources(
        cpu_period=100_000,
        cpu_quota=quota,
        cpu_shares=512,
        memory_limit_in_bytes=64 * MIB,
        memory_swap_limit_in_bytes=64 * MIB,
    )
    return cri.LinuxContainerConfig(resources=resources)


def test_all_that_is_described_is_told_with_its_labels(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod, linux=limits())
    kubelet.exec_sync(container, "sh", "-c", "for i in 1 2 3; do echo hi > /file$i; done; sync")
    known = descriptors(kubelet)
    found = listed(kubelet)[pod.id]
    [of_it] = found.container_metrics
    told = set()
    for metric in (*found.metrics, *of_it.metrics):
        labels = dict(zip(known[metric.name], metric.label_values, strict=True))
        assert (labels["namespace"], labels["pod"]) == (pod.config.metadata.namespace, pod.config.metadata.name)
        assert labels["id"] == (container if labels["container"] else pod.id)
        told.add(metric.name.removeprefix("container_"))
    missing = {name.removeprefix("container_") for name in known} - told
    assert {name for name in missing if not name.startswith(WHERE_COUNTED)} == set()


def test_numbers_are_the_containers(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    script = "nc -l -p 80 -e cat & x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo ready > /ready; sleep 1000; true"
    container = kubelet.run_container(pod, ["sh", "-c", script], linux=limits())
    until(lambda: kubelet.exec_sync(container, "test", "-e", "/ready").exit_code == 0, what="it listens and holds 20 MB")
    found = of_container(kubelet, pod, container)
    assert one(found, "processes") == one(found, "threads") == 3
    assert one(found, "sockets") == 1
    assert one(found, "file_descriptors") >= 3 * 3
    assert one(found, "threads_max") == 0
    assert 20_000_000 < one(found, "memory_rss") <= one(found, "memory_usage_bytes") < 64 * MIB
    assert one(found, "memory_max_usage_bytes") >= one(found, "memory_working_set_bytes") > 20_000_000
    assert found["memory_failures_total"]["pgfault", "container"] > 1000
    assert one(found, "spec_memory_limit_bytes") == one(found, "spec_memory_swap_limit_bytes") == 64 * MIB
    assert (one(found, "spec_cpu_quota"), one(found, "spec_cpu_period"), one(found, "spec_cpu_shares")) == (50_000, 100_000, 512)
    assert time.time() - 60 < one(found, "start_time_seconds") <= one(found, "last_seen") <= time.time()
    assert one(found, "oom_events_total") == 0
    assert one(found, "ulimits_soft") > 0
    assert one(found, "fs_limit_bytes") > one(found, "fs_usage_bytes")
    assert one(found, "fs_inodes_total") > one(found, "fs_inodes_free") > 0


def test_a_busy_one_is_held_back_and_counted(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    held, busy, idle = kubelet.run_container(pod, BUSY, linux=limits(5_000)), kubelet.run_container(pod, BUSY), kubelet.run_container(pod)
    until(lambda: one(of_container(kubelet, pod, held), "cpu_cfs_throttled_periods_total") > 3, what="it is held back")
    found = of_container(kubelet, pod, held)
    assert one(found, "cpu_cfs_periods_total") >= one(found, "cpu_cfs_throttled_periods_total")
    until(lambda: one(of_container(kubelet, pod, busy), "cpu_usage_seconds_total") > 0, what="it has used a second")
    found = of_container(kubelet, pod, busy)
    assert found["cpu_usage_seconds_total"].keys() == {("total",)}
    assert one(found, "cpu_user_seconds_total") + one(found, "cpu_system_seconds_total") <= one(found, "cpu_usage_seconds_total") + 1
    calm = of_container(kubelet, pod, idle)
    assert one(calm, "cpu_usage_seconds_total") == 0
    assert "cpu_cfs_periods_total" not in calm


def test_what_goes_over_the_pods_network(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    before = numbers(listed(kubelet)[pod.id].metrics)
    gateway = kubelet.exec_sync(container, "sh", "-c", "ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'").stdout.decode().strip()
    kubelet.exec_sync(container, "ping", "-c", "3", "-s", "1200", "-i", "0.2", gateway)
    after = numbers(listed(kubelet)[pod.id].metrics)
    for way in ("receive", "transmit"):
        for count, least in (("bytes", 3600), ("packets", 3)):
            name = f"network_{way}_{count}_total"
            assert after[name]["eth0",] >= before[name]["eth0",] + least
            assert ("lo",) not in after[name]
    host = kubelet.run_pod(namespaces=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER, ipc=cri.POD))
    assert not listed(kubelet)[host.id].metrics


def test_no_shim_is_asked(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    with mute(pod):
        assert one(of_container(kubelet, pod, container), "memory_usage_bytes") > 0


def test_containers_that_come_and_go_while_they_are_read(kubelet: Client) -> None:
    """No call fails, and who is there at all is there with all of its numbers."""
    pod = kubelet.run_pod()
    stays = kubelet.run_container(pod)
    with in_the_background(lambda: churn(kubelet, pod)) as running:
        looks = 0
        while running():
            looks += 1
            found = {each.container_id: numbers(each.metrics) for each in listed(kubelet)[pod.id].container_metrics}
            assert stays in found
            for each in found.values():
                assert one(each, "memory_usage_bytes") > 0
                assert one(each, "start_time_seconds") > 0
    assert looks > 10


def test_a_stream_says_what_the_list_says(kubelet: Client) -> None:
    pods = [kubelet.run_pod() for _ in range(2)]
    containers = {kubelet.run_container(pod) for pod in pods}
    ended = kubelet.run_pod()
    kubelet.stop_pod(ended)
    messages = kubelet.runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest())
    streamed = [pod for message in messages for pod in message.pod_sandbox_metrics]
    assert {pod.pod_sandbox_id for pod in streamed} == {pod.id for pod in pods} == listed(kubelet).keys()
    assert {each.container_id for pod in streamed for each in pod.container_metrics} == containers


def test_pressure_where_the_kernel_tells_it(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    told = "pressure_cpu_waiting_seconds_total" in of_container(kubelet, pod, container)
    assert told == (CGROUPS / "cpu.pressure").exists()
