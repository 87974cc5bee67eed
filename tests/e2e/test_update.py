"""UpdateContainerResources, with each pair: what is asked for is in the cgroup, in the status, or refused with nothing changed.
And UpdatePodSandboxResources, which is remembered."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, refused, until
from tests.e2e.node import CGROUPS, container_cgroup
from tests.e2e.toolbox import Pair

pytestmark = pytest.mark.e2e

MIB = 1 << 20
V2 = (CGROUPS / "cgroup.controllers").exists()
FILES = {
    "memory": ("memory", "memory.max" if V2 else "memory.limit_in_bytes"),
    "quota": ("cpu", "cpu.max" if V2 else "cpu.cfs_quota_us"),
    "shares": ("cpu", "cpu.weight" if V2 else "cpu.shares"),
}


@pytest.fixture
def pod(kubelet: Client) -> Pod:
    return kubelet.run_pod()


def update(kubelet: Client, container: str, **limits: Any) -> None:
    resources = cri.LinuxContainerResources(**limits)
    kubelet.runtime.UpdateContainerResources(cri.UpdateContainerResourcesRequest(container_id=container, linux=resources))


def in_cgroup(pod: Pod, container: str, what: str) -> str:
    controller, name = FILES[what]
    file = CGROUPS / ("" if V2 else controller) / container_cgroup(pod.config.linux.cgroup_parent, container) / name
    return file.read_text().split()[0]


def shown(kubelet: Client, container: str) -> cri.LinuxContainerResources:
    return kubelet.status(container).resources.linux


def limits(**fields: Any) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(**fields))


def test_of_one_that_runs(kubelet: Client, pod: Pod, pair: Pair) -> None:
    before: dict[str, Any] = {
        "cpu_shares": 512,
        "cpu_quota": 50_000,
        "cpu_period": 100_000,
        "memory_limit_in_bytes": 64 * MIB,
        "oom_score_adj": 900,
    }
    container = kubelet.run_container(pod, linux=limits(**before))
    weight = in_cgroup(pod, container, "shares")
    update(kubelet, container, memory_limit_in_bytes=128 * MIB, cpu_quota=70_000)
    assert in_cgroup(pod, container, "memory") == str(128 * MIB)
    assert in_cgroup(pod, container, "quota") == "70000"
    assert in_cgroup(pod, container, "shares") == weight, "what isn't asked for stays"
    changed = {**before, "memory_limit_in_bytes": 128 * MIB, "cpu_quota": 70_000}
    assert shown(kubelet, container) == cri.LinuxContainerResources(**changed)
    update(kubelet, container, memory_limit_in_bytes=48 * MIB, cpu_shares=1024)
    assert in_cgroup(pod, container, "memory") == str(48 * MIB)
    assert in_cgroup(pod, container, "shares") != weight
    # crun 1.8 writes -1 as an unsigned number, which v1 refuses; crun (1.28 still) leaves the quota of a scope of systemd's as it was.
    if pair != Pair("1.6", "crun") and not (pair.engine == "crun" and pod.config.linux.cgroup_parent.endswith(".slice")):
        update(kubelet, container, cpu_quota=-1)
        assert in_cgroup(pod, container, "quota") in ("-1", "max")
    assert kubelet.exec_sync(container, "echo", "alive").stdout == b"alive\n"
    assert kubelet.exec_sync(container, "sh", "-c", "echo > /dev/null").exit_code == 0, "its devices are still allowed"


def test_without_swap_there_is_none_whatever_the_memory(kubelet: Client, pod: Pod) -> None:
    """The kubelet says both; crictl says the memory only."""
    container = kubelet.run_container(pod, linux=limits(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=64 * MIB))
    for size in (128 * MIB, 32 * MIB):
        update(kubelet, container, memory_limit_in_bytes=size)
        assert in_cgroup(pod, container, "memory") == str(size)
        assert shown(kubelet, container).memory_swap_limit_in_bytes == size


def test_of_one_that_is_not_started_yet(kubelet: Client, pod: Pod) -> None:
    container = kubelet.create_container(pod, linux=limits(memory_limit_in_bytes=64 * MIB, cpu_shares=512))
    update(kubelet, container, memory_limit_in_bytes=96 * MIB)
    assert shown(kubelet, container) == cri.LinuxContainerResources(memory_limit_in_bytes=96 * MIB, cpu_shares=512)
    kubelet.start(container)
    assert in_cgroup(pod, container, "memory") == str(96 * MIB)


OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"memory_limit_in_bytes": -5}, "memory limit -5"),
    ({"memory_limit_in_bytes": 4096}, "memory_limit_in_bytes 4096"),
    ({"memory_swap_limit_in_bytes": 8 * MIB}, "memory_swap_limit_in_bytes"),
    ({"cpu_shares": -1}, "cpu_shares -1"),
    ({"cpu_shares": 262_145}, "cpu_shares 262145"),
    ({"cpu_period": 5}, "cpu_period 5"),
    ({"cpu_period": 10_000_000}, "cpu_period 10000000"),
    ({"cpu_quota": 10}, "cpu_quota 10"),
    ({"unified": {"../memory.max": "1"}}, "unified"),
]


@pytest.mark.parametrize(("wanted", "words"), OUT_OF_RANGE, ids=[words for _, words in OUT_OF_RANGE])
def test_what_can_not_be_changes_nothing(kubelet: Client, pod: Pod, wanted: dict[str, Any], words: str) -> None:
    container = kubelet.run_container(pod, linux=limits(memory_limit_in_bytes=64 * MIB, cpu_shares=512))
    before = shown(kubelet, container)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "linux", words):
        update(kubelet, container, **wanted)
    assert shown(kubelet, container) == before
    assert in_cgroup(pod, container, "memory") == str(64 * MIB)


def test_what_the_kernel_refuses_changes_nothing(kubelet: Client, pod: Pod) -> None:
    container = kubelet.run_container(pod, linux=limits(memory_limit_in_bytes=64 * MIB))
    before = shown(kubelet, container)
    with refused(grpc.StatusCode.UNKNOWN, "cpuset"):
        update(kubelet, container, cpuset_cpus="4000", memory_limit_in_bytes=128 * MIB)
    assert shown(kubelet, container) == before
    assert kubelet.status(container).state == cri.CONTAINER_RUNNING


def test_less_memory_than_is_in_use(kubelet: Client, pod: Pod) -> None:
    """It may be refused; nobody is killed for it."""
    script = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo ready > /ready; sleep 1000; true"
    container = kubelet.run_container(pod, ["sh", "-c", script], linux=limits(memory_limit_in_bytes=64 * MIB))
    until(lambda: kubelet.exec_sync(container, "test", "-e", "/ready").exit_code == 0, what="it holds 30 MB")
    with refused(grpc.StatusCode.UNKNOWN):
        update(kubelet, container, memory_limit_in_bytes=16 * MIB)
    assert kubelet.status(container).state == cri.CONTAINER_RUNNING
    assert shown(kubelet, container).memory_limit_in_bytes == 64 * MIB
    assert in_cgroup(pod, container, "memory") == str(64 * MIB)


def test_an_update_decides_who_is_out_of_memory(kubelet: Client, pod: Pod) -> None:
    container = kubelet.run_container(
        pod, ["sh", "-c", "until [ -e /go ]; do sleep 0.05; done; exec tail /dev/zero"], linux=limits(memory_limit_in_bytes=512 * MIB)
    )
    update(kubelet, container, memory_limit_in_bytes=16 * MIB)
    kubelet.exec_sync(container, "touch", "/go")
    until(lambda: kubelet.status(container).reason == "OOMKilled", what="the exit is known to be the OOM killer's")
    assert kubelet.status(container).exit_code == 137


def test_of_one_that_has_ended_or_never_was(kubelet: Client, pod: Pod) -> None:
    container = kubelet.run_container(pod, ["true"])
    kubelet.wait_exit(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "has ended"):
        update(kubelet, container, cpu_shares=5)
    with refused(grpc.StatusCode.NOT_FOUND, "'nope'"):
        update(kubelet, "nope", cpu_shares=5)
    windows = cri.UpdateContainerResourcesRequest(container_id=container, windows=cri.WindowsContainerResources(cpu_count=1))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "windows"):
        kubelet.runtime.UpdateContainerResources(windows)


class TestPod:
    def resize(self, kubelet: Client, pod: str, **limits: Any) -> None:
        resources = cri.LinuxContainerResources(**limits)
        kubelet.runtime.UpdatePodSandboxResources(cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=resources))

    def test_what_is_asked_for_is_shown_and_no_container_is_touched(self, kubelet: Client, pod: Pod) -> None:
        container = kubelet.run_container(pod, linux=limits(memory_limit_in_bytes=64 * MIB))
        for _ in range(2):
            self.resize(kubelet, pod.id, memory_limit_in_bytes=256 * MIB, cpu_shares=1024)
        status = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True))
        assert json.loads(status.info["info"])["resources"] == {"memory_limit_in_bytes": str(256 * MIB), "cpu_shares": "1024"}
        assert in_cgroup(pod, container, "memory") == str(64 * MIB)

    def test_what_is_refused(self, kubelet: Client, pod: Pod) -> None:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "resources.cpu_period 5"):
            self.resize(kubelet, pod.id, cpu_period=5)
        with refused(grpc.StatusCode.NOT_FOUND, "'nope'"):
            self.resize(kubelet, "nope", cpu_shares=5)
        kubelet.stop_pod(pod)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, pod.id, "stopped"):
            self.resize(kubelet, pod.id, cpu_shares=5)
