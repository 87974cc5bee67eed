"""`kill -9` of a pod's shim: every container of it is taken down in order, and the pod lives on (decisions 2)."""

from __future__ import annotations

import os
import signal
import time

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Pod, until
from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig, init_of, shim_of, wait_for_new_shim

pytestmark = pytest.mark.e2e


def assert_ready(rig: Rig, pod: Pod, ip: cri.PodSandboxNetworkStatus) -> None:
    status = rig.kubelet.pod_status(pod)
    assert (status.state, status.network) == (cri.SANDBOX_READY, ip)


def assert_order(steps: list[tuple[str, str]], containers: list[str]) -> None:
    """Each container's `shim delete` is made once, before its bundle is touched; the newest container is the first."""
    told = [(step, subject) for step, subject in steps if step in ("shim_delete", "bundle") and subject in containers]
    assert told == [(step, container) for container in reversed(containers) for step in ("shim_delete", "bundle")]


@pytest.mark.field_fault("9", "M2")
def test_killed_then_stopped_and_removed_at_once(rig: Rig) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    containers = [kubelet.run_container(pod) for _ in range(3)]
    begin = rig.daemon.log.stat().st_size
    os.kill(shim_of(pod).pid, signal.SIGKILL)
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)
    assert_order(rig.steps(begin), containers)
    rig.assert_clean()


@pytest.mark.field_fault("9", "M1")
@one_pair
def test_killed_and_the_pod_lives_on(rig: Rig) -> None:
    rig.with_each_pair(lambda handler: kill_and_live_on(rig, handler))
    rig.assert_clean()


def kill_and_live_on(rig: Rig, handler: str) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod(log_directory=rig.log_directory(), handler=handler)
    containers = [kubelet.run_container(pod, ["sh", "-c", "echo begun; sleep 1000000"]) for _ in range(2)]
    created = kubelet.create_container(pod, name="app")
    ip, shim, begin = kubelet.pod_status(pod).network, shim_of(pod), rig.daemon.log.stat().st_size
    until(lambda: all(kubelet.logs(container) for container in containers), what="they have begun")
    os.kill(shim.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    for container in containers:
        status = kubelet.wait_exit(container)
        assert (status.exit_code, status.reason) == (255, "Unknown")
        assert f"its shim, process {shim.pid}, ended unexpectedly" in status.message
        assert init_of(container) == []
    wait_for_new_shim(pod, shim)
    assert_order(rig.steps(begin), containers)
    assert_ready(rig, pod, ip)
    assert [line.text for line in kubelet.logs(containers[0])] == ["begun"]

    kubelet.start(created)
    again = kubelet.run_container(pod, ["sh", "-c", "echo again; sleep 1000000"])
    for container in (created, again):
        assert f" {ip.ip}/" in kubelet.exec_sync(container, "ip", "-o", "addr").stdout.decode()
    until(lambda: [line.text for line in kubelet.logs(again)] == ["again"], what="its log is read")

    time.sleep(max(0.0, killed_at + 3 - time.monotonic()))  # "Stop and Remove after 3 s": where others have leaked by then
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)


@pytest.mark.field_fault("9", "M3")
def test_killed_at_the_same_moment_as_the_daemon(rig: Rig) -> None:
    kubelet = rig.kubelet
    pods = [kubelet.run_pod() for _ in range(2)]
    containers = {pod.id: [kubelet.run_container(pod) for _ in range(2)] for pod in pods}
    killed, ips = [shim_of(pod) for pod in pods], [kubelet.pod_status(pod).network for pod in pods]
    os.kill(killed[0].pid, signal.SIGKILL)
    rig.daemon.kill9()
    os.kill(killed[1].pid, signal.SIGKILL)
    begin = rig.daemon.log.stat().st_size
    rig.daemon.start()
    for pod, shim, ip in zip(pods, killed, ips, strict=True):
        for container in containers[pod.id]:
            status = kubelet.wait_exit(container)
            assert (status.exit_code, status.reason) == (255, "Unknown")
            assert f"process {shim.pid}, ended while the agent was away" in status.message
            assert init_of(container) == []
        wait_for_new_shim(pod, shim)
        assert_order(rig.steps(begin), containers[pod.id])
        assert_ready(rig, pod, ip)
        assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"
