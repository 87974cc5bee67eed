"""Lists, statuses and ids: what a kubelet's polling and people's short ids rely on. One pair: no shim is asked here."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, refused
from tests.e2e.conftest import one_pair
from tests.e2e.node import processes

pytestmark = [pytest.mark.e2e, one_pair]


def test_filters(kubelet: Client) -> None:
    first, second = (kubelet.run_pod(name, labels={"name": name, "all": "yes"}) for name in ("first", "second"))
    kubelet.stop_pod(second)
    running = kubelet.run_container(first, labels={"name": "running", "all": "yes"})
    created = kubelet.create_container(first, labels={"name": "created", "all": "yes"})

    def pods(**wanted: Any) -> set[str]:
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**wanted))
        return {item.id for item in kubelet.runtime.ListPodSandbox(request).items}

    def containers(**wanted: Any) -> set[str]:
        request = cri.ListContainersRequest(filter=cri.ContainerFilter(**wanted))
        return {item.id for item in kubelet.runtime.ListContainers(request).containers}

    assert pods() == {first.id, second.id}
    assert pods(id=first.id) == pods(id=first.id[:12]) == {first.id}
    assert pods(state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY)) == {first.id}
    assert pods(state=cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY)) == {second.id}
    assert pods(label_selector={"all": "yes"}) == {first.id, second.id}
    assert pods(label_selector={"all": "yes", "name": "second"}) == {second.id}
    assert pods(id="0" * 64) == pods(id=first.id, label_selector={"name": "second"}) == set()

    assert containers() == {running, created}
    assert containers(id=running) == containers(id=running[:12]) == {running}
    assert containers(state=cri.ContainerStateValue(state=cri.CONTAINER_CREATED)) == {created}
    assert containers(pod_sandbox_id=first.id) == {running, created}
    assert containers(pod_sandbox_id=second.id) == set()
    assert containers(label_selector={"all": "yes", "name": "running"}) == {running}


def test_lists_and_statuses_agree(kubelet: Client) -> None:
    pod = kubelet.run_pod(labels={"a": "b"}, annotations={"c": "d"})
    container = kubelet.run_container(pod, labels={"e": "f"}, annotations={"g": "h"})
    status, [item] = kubelet.pod_status(pod), kubelet.pods()
    for name in ("id", "metadata", "state", "created_at", "labels", "annotations", "runtime_handler"):
        assert getattr(status, name) == getattr(item, name), name
    other, [listed] = kubelet.status(container), kubelet.containers()
    for name in ("id", "metadata", "state", "created_at", "labels", "annotations", "image", "image_ref", "image_id"):
        assert getattr(other, name) == getattr(listed, name), name
    assert listed.pod_sandbox_id == pod.id
    whole = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    assert list(whole.containers_statuses) == [other]


def test_verbose_tells_what_the_pod_owns(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    answer = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True))
    details = json.loads(answer.info["info"])
    assert {"network", "ipc", "uts"} == set(details["pins"])
    assert {"SHIM", "CNI", "NETNS", "TASK"} <= {resource["kind"].upper() for resource in details["ledger"]}
    answer = kubelet.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container, verbose=True))
    details = json.loads(answer.info["info"])
    assert details["runtimeSpec"]["process"]["args"] == ["sleep", "1000000"]
    assert any(process.pid == details["pid"] for process in processes())


def test_ids_can_be_shortened_where_they_stay_clear(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    assert kubelet.status(container[:10]).id == container
    assert kubelet.exec_sync(container[:10], "echo", "on").stdout == b"on\n"
    kubelet.stop_pod(pod.id[:10])
    assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
    kubelet.remove(container[:10])
    kubelet.remove_pod(pod.id[:10])
    assert kubelet.pods() == []


@pytest.mark.parametrize("name", ["x" * 64, "nope", "../../etc/passwd", ""])
def test_unknown_ids(kubelet: Client, name: str) -> None:
    pod = kubelet.run_pod()  # an empty or short id must not hit the only one there is
    container = kubelet.run_container(pod)
    runtime = kubelet.runtime
    not_there: list[Callable[[], Any]] = [
        lambda: runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=name)),
        lambda: runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=name)),
        lambda: runtime.StartContainer(cri.StartContainerRequest(container_id=name)),
        lambda: runtime.ExecSync(cri.ExecSyncRequest(container_id=name, cmd=["true"])),
        lambda: runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=name)),
    ]
    for call in not_there:
        with refused(grpc.StatusCode.NOT_FOUND, repr(name)):
            call()
    kubelet.stop(name)
    kubelet.remove(name)
    kubelet.stop_pod(name)
    kubelet.remove_pod(name)
    assert kubelet.status(container).state == cri.CONTAINER_RUNNING
    assert kubelet.pod_status(pod).state == cri.SANDBOX_READY
