"""Whatever else gets killed: the log copier, network plugins, containers behind the agent's back."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.faults import COUNTER, Rig, init_of, release
from tests.e2e.node import CGROUPS, Process, processes, shims

pytestmark = pytest.mark.e2e


# ---- the log copier


def copier() -> Process:
    [found] = [process for process in processes() if "agent.logs.copier" in process.argv and process.state != "Z"]
    return found


def wait_for_new_copier(old: Process) -> None:
    def replaced() -> bool:
        found = [process.pid for process in processes() if "agent.logs.copier" in process.argv and process.state != "Z"]
        return found not in ([], [old.pid])

    until(replaced, what="there is a new log copier")


def numbers(kubelet: Client, container: str) -> list[int]:
    return [int(line.text) for line in kubelet.logs(container)]


def more_numbers(kubelet: Client, container: str) -> None:
    """Waits until the container's counter has gone on in its log."""
    so_far = len(kubelet.logs(container))
    until(lambda: len(kubelet.logs(container)) > so_far + 5, what="the log goes on")


@one_pair
def test_the_log_copier_ends_in_order(rig: Rig) -> None:
    """No gap and no double, which the end of the module asks of the bystander's log as well."""
    old = copier()
    os.kill(old.pid, signal.SIGTERM)
    wait_for_new_copier(old)
    more_numbers(rig.kubelet, rig.counter)
    assert numbers(rig.kubelet, rig.counter) == list(range(len(numbers(rig.kubelet, rig.counter))))


@one_pair
def test_the_log_copier_is_killed(rig: Rig) -> None:
    """No gap; what it had read last may be there twice. One that ends meanwhile keeps its last lines (decisions 24, 26)."""
    kubelet = rig.kubelet
    with rig.frozen_bystander():  # nothing of its log may be read twice: the end of the module looks
        pod = kubelet.run_pod(log_directory=rig.log_directory())
        counts = kubelet.run_container(pod, ["sh", "-c", COUNTER])
        ends = kubelet.run_container(pod, ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done; seq 1000; exit 9"])
        more_numbers(kubelet, counts)
        old = copier()
        os.kill(old.pid, signal.SIGKILL)
        release(ends)
        wait_for_new_copier(old)
        assert kubelet.wait_exit(ends).exit_code == 9
        assert [line.text for line in kubelet.logs(ends)] == [str(number) for number in range(1, 1001)]
        more_numbers(kubelet, counts)
        found = numbers(kubelet, counts)
        assert sorted(set(found)) == list(range(max(found) + 1)), "there is a gap"
        steps_back = [index for index in range(1, len(found)) if found[index] <= found[index - 1]]
        assert len(steps_back) <= 1


# ---- network plugins


@pytest.mark.field_fault("18")
@one_pair
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_network_plugin_is_killed(rig: Rig, moment: str) -> None:
    """Before it has done anything, or when all is there and it could not say so."""
    kubelet, gate = rig.kubelet, rig.gates.add
    config = kubelet.pod_config(port_mappings=[cri.PortMapping(container_port=80, host_port=8080)])
    with gate.shut(moment), ThreadPoolExecutor(1) as pool:
        running = pool.submit(kubelet.run_again, config)
        until(gate.reached, what="the plugin has come so far")
        for process in gate.processes():
            os.kill(process.pid, signal.SIGKILL)
        with refused(grpc.StatusCode.UNKNOWN, "bridge", "ADD", "signal 9"):
            running.result()
    rig.assert_clean()
    assert kubelet.pod_status(kubelet.run_again(config)).network.ip


@pytest.mark.field_fault("18")
@one_pair
@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_daemon_is_killed_within_a_network_plugin(rig: Rig, moment: str) -> None:
    """The plugin is its child, and dead before the next daemon calls DEL: or it would go on attaching behind that."""
    kubelet, gate = rig.kubelet, rig.gates.add
    config = kubelet.pod_config(port_mappings=[cri.PortMapping(container_port=80, host_port=8080)])
    with gate.shut(moment), ThreadPoolExecutor(1) as pool:
        running = pool.submit(kubelet.run_again, config)
        until(gate.reached, what="the plugin has come so far")
        rig.daemon.kill9()
        with pytest.raises(grpc.RpcError):
            running.result()
        rig.daemon.start()
        until(lambda: not gate.processes(), what="the plugin is dead", within=5)
        rig.assert_clean()
    assert kubelet.pod_status(kubelet.run_again(config)).network.ip


# ---- containers


@pytest.mark.field_fault("5")
def test_an_init_is_killed_behind_the_agents_back(rig: Rig) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    containers = [kubelet.run_container(pod) for _ in range(2)]
    os.kill(init_of(containers[0])[0][0], signal.SIGKILL)
    status = kubelet.wait_exit(containers[0])
    assert (status.exit_code, status.reason) == (137, "Error")
    assert kubelet.status(containers[1]).state == cri.CONTAINER_RUNNING
    kubelet.run_container(pod)


@pytest.mark.field_fault("10")
def test_a_pods_whole_cgroup_is_killed(rig: Rig) -> None:
    """As the OOM killer and node tools do, past everybody (field-faults 10)."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    containers = [kubelet.run_container(pod) for _ in range(3)]
    shim = [(shim.pid, shim.start_time) for shim in shims(pod.id)]
    victims = pids_below(pod.config.linux.cgroup_parent)
    assert len(victims) == 3
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for container in containers:
        status = kubelet.wait_exit(container)
        assert (status.exit_code, status.reason) == (137, "Error")
    assert [(shim.pid, shim.start_time) for shim in shims(pod.id)] == shim
    assert kubelet.pod_status(pod).state == cri.SANDBOX_READY
    assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"


def pids_below(cgroup: str) -> set[int]:
    found: set[int] = set()
    for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
        for members in Path(f"{hierarchy}{cgroup}").rglob("cgroup.procs"):
            found.update(map(int, members.read_text().split()))
    return found


@pytest.mark.field_fault("5", "M6", "S4")
def test_a_sandbox_task_is_killed(rig: Rig) -> None:
    """Its namespaces, or its VM, were the pod's: the pod is not ready any more, and the kubelet makes another one."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod(handler="task")
    container = kubelet.run_container(pod)
    [(pause, _)] = init_of(pod.id)
    os.kill(pause, signal.SIGKILL)
    until(lambda: kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY, what="the sandbox isn't ready")
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)
    assert init_of(container) == []
    rig.assert_clean()
