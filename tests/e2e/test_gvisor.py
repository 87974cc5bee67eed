"""gVisor's sandboxes, for real: they live as other containers do, and whatever of them is killed, nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Pod, until
from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig, shim_of, wait_for_new_shim
from tests.e2e.gvisor import GVisor, process_of, sandboxes
from tests.e2e.toolbox import Pair

pytestmark = [pytest.mark.e2e, one_pair]

TIMEOUTS = "EXIT_AFTER_KILL=5;EXIT_AFTER_CGROUP_KILL=1;RELEASE_RETRY=1;AUDIT_INTERVAL=0.5"


@pytest.fixture(scope="module")
def gvisor(faulty_daemon: Rig, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> GVisor:
    made = GVisor(tmp_path_factory.mktemp("gvisor"), pair)
    (faulty_daemon.daemon.config.parent / "conf.d/gvisor.toml").write_text(made.handler)
    faulty_daemon.daemon.restart()
    return made


@pytest.fixture
def pod(rig: Rig, gvisor: GVisor) -> Iterator[Pod]:
    """After the test no process of a sandbox is left, once its pods are removed."""
    yield rig.kubelet.run_pod(handler="gvisor", log_directory=rig.log_directory())
    rig.serve()
    rig.tidy()
    assert sandboxes() == []


def assert_usable(rig: Rig, pod: Pod, ip: str) -> None:
    """The pod runs the next container, with its address."""
    again = rig.kubelet.run_container(pod)
    assert f" {ip}/" in rig.kubelet.exec_sync(again, "ip", "-o", "addr").stdout.decode()
    assert rig.kubelet.pod_status(pod).state == cri.SANDBOX_READY


def test_a_life(rig: Rig, pod: Pod) -> None:
    kubelet = rig.kubelet
    script = "trap 'echo ends; exit 7' TERM; echo begun; echo aside >&2; while :; do sleep 0.1; done"
    container = kubelet.run_container(pod, ["sh", "-c", script])
    assert b"gVisor" in kubelet.exec_sync(container, "dmesg").stdout
    done = kubelet.exec_sync(container, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 5)
    stats = kubelet.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container)).stats
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert stats.memory.working_set_bytes.value > 1 << 20
    assert rig.daemon.orlop("--config", rig.daemon.config, "audit").returncode == 0, "something that lives is called a leak"
    kubelet.stop(container, grace=10)
    assert kubelet.status(container).exit_code == 7
    assert sorted(line.text for line in kubelet.logs(container)) == ["aside", "begun", "ends"]
    kubelet.remove(container)
    assert sandboxes() == []
    assert_usable(rig, pod, kubelet.pod_status(pod).network.ip)


def test_the_daemon_is_killed(rig: Rig, pod: Pod) -> None:
    kubelet = rig.kubelet
    container = kubelet.run_container(pod, ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.1; done; exit 6"])
    sandbox = process_of(container, "sandbox")
    rig.daemon.kill9()
    rig.daemon.start()
    assert process_of(container, "sandbox").pid == sandbox.pid
    assert kubelet.exec_sync(container, "touch", "/tmp/go").exit_code == 0
    assert kubelet.wait_exit(container).exit_code == 6


@pytest.mark.parametrize("kind", ["sandbox", "gofer"])
def test_a_process_of_the_sandbox_is_killed(rig: Rig, pod: Pod, kind: str) -> None:
    kubelet = rig.kubelet
    container = kubelet.run_container(pod)
    os.kill(process_of(container, kind).pid, signal.SIGKILL)
    if kind == "gofer":  # the sandbox runs on until it wants a file
        kubelet.stop(container)
    assert kubelet.wait_exit(container).exit_code != 0
    until(lambda: not sandboxes(), what="nothing of the sandbox runs", detail=sandboxes)
    kubelet.remove(container)
    assert_usable(rig, pod, kubelet.pod_status(pod).network.ip)


@pytest.mark.parametrize("broken", [False, True], ids=["", "the engine is broken"])
def test_the_shim_is_killed(rig: Rig, gvisor: GVisor, pod: Pod, broken: bool) -> None:
    """Also where the engine can't delete anything: processes go by cgroup, and what the engine keeps of them by its names."""
    kubelet = rig.kubelet
    containers = [kubelet.run_container(pod) for _ in range(2)]
    shim = shim_of(pod)
    if broken:
        gvisor.breaks()
    try:
        os.kill(shim.pid, signal.SIGKILL)
        for container in containers:
            assert kubelet.wait_exit(container).reason == "Unknown"
        until(lambda: not sandboxes(), what="nothing of the sandboxes runs", detail=sandboxes)
        until(lambda: not kept_by_engine(rig, containers), what="the engine keeps nothing", detail=lambda: kept_by_engine(rig, containers))
        wait_for_new_shim(pod, shim)
    finally:
        if broken:
            gvisor.mend()
    assert_usable(rig, pod, kubelet.pod_status(pod).network.ip)


def test_the_shim_and_the_daemon_are_killed(rig: Rig, pod: Pod) -> None:
    kubelet = rig.kubelet
    container = kubelet.run_container(pod)
    rig.daemon.kill9()
    os.kill(shim_of(pod).pid, signal.SIGKILL)
    assert sandboxes(), "it has gone with its shim"
    rig.daemon.start()
    assert kubelet.wait_exit(container).reason == "Unknown"
    until(lambda: not sandboxes(), what="nothing of the sandbox runs", detail=sandboxes)
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)


def kept_by_engine(rig: Rig, containers: list[str]) -> list[str]:
    places = (rig.daemon.state / "runc/k8s.io", Path("/run"))
    return [path.name for place in places for path in place.iterdir() if any(container in path.name for container in containers)]
