"""Faults that users of other runtimes reported (the rows of tests/README.md): calls that are given up, made again, or made by many."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.dead_fs import dead_file_system
from tests.e2e.faults import Rig, init_of
from tests.e2e.node import shims
from tests.e2e.races import code_of, code_of_call, running

pytestmark = [pytest.mark.e2e, one_pair]

TIMEOUTS = "SHIM_LOAD=4;SHIM_SHUTDOWN=1;IN_FLIGHT=1"
NOTED = "*=1000000*crash"  # never; but what is passed is noted
PATIENCE = 0.2  # seconds; less than the kubelet's two minutes
CODE = grpc.StatusCode
STUBBORN = ("sh", "-c", "trap '' TERM; touch /tmp/ready; while :; do sleep 1; done")


# ---- 0a: the client's patience has an end


def adopt(kubelet: Client, config: cri.PodSandboxConfig) -> Pod:
    """What a kubelet does after its RunPodSandbox ran out of time: asks again, or finds the pod in the list."""
    try:
        return kubelet.run_again(config)
    except grpc.RpcError as error:
        if error.code() is not CODE.ALREADY_EXISTS:
            raise
    [found] = [item for item in kubelet.pods() if item.metadata.uid == config.metadata.uid]
    return Pod(found.id, config)


def spread(points: list[str], number: int) -> list[str]:
    """So many of them, from the first to the last."""
    different = list(dict.fromkeys(points))
    return [different[index * (len(different) - 1) // (number - 1)] for index in range(number)]


def noted(rig: Rig, act: Callable[[], object]) -> list[str]:
    """The failpoints that are passed meanwhile."""
    rig.daemon.failpoints(NOTED)
    act()
    return rig.daemon.failpoints("")


@pytest.mark.field_fault("0a")
def test_run_pod_sandbox_is_given_up_at_ten_points(rig: Rig) -> None:
    """The work goes on; who asks again joins it, or finds it done."""
    kubelet = rig.kubelet
    for point in spread(noted(rig, kubelet.run_pod), 10):
        config = kubelet.pod_config()
        request = cri.RunPodSandboxRequest(config=config)
        with rig.paused(point, partial(kubelet.runtime.RunPodSandbox, request, timeout=PATIENCE)) as running_it:
            assert code_of(running_it) is CODE.DEADLINE_EXCEEDED, point
        pod = adopt(kubelet, config)
        assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"
        assert len(shims(pod.id)) == 1
        kubelet.remove_pod(pod)
    rig.tidy()
    rig.assert_clean()


@pytest.mark.field_fault("0a")
def test_start_container_is_given_up_at_ten_points(rig: Rig) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    first = kubelet.create_container(pod)
    for point in spread(noted(rig, lambda: kubelet.start(first)), 10):
        container = kubelet.create_container(pod)
        request = cri.StartContainerRequest(container_id=container)
        with rig.paused(point, partial(kubelet.runtime.StartContainer, request, timeout=PATIENCE)) as starting:
            assert code_of(starting) is CODE.DEADLINE_EXCEEDED, point
        until(partial(runs, kubelet, container), what=f"it runs, after {point}")
        assert len(init_of(container)) == 1
        kubelet.remove(container)


def runs(kubelet: Client, container: str) -> bool:
    return bool(kubelet.status(container).state == cri.CONTAINER_RUNNING)


# ---- 0b: what a crash left doesn't answer


@pytest.mark.field_fault("0b", "6")
def test_a_shim_that_is_nobodys_and_mute(rig: Rig) -> None:
    """The daemon serves before it has dealt with it, deals with it once, and the node's other pods don't notice."""
    kubelet = rig.kubelet
    rig.daemon.failpoints("pods.sandbox_run.record=crash")
    assert rig.dies(kubelet.run_pod)
    [leftover] = [shim for shim in shims() if rig.pod.id not in shim.argv]
    os.kill(leftover.pid, signal.SIGSTOP)
    rig.daemon.start(failpoints="runtime.load.shim=pause")
    assert rig.counter in [item.id for item in kubelet.containers()]
    rig.daemon.failpoints("")
    until(lambda: leftover.pid not in [shim.pid for shim in shims()], what="it has ended")
    assert kubelet.exec_sync(rig.counter, "echo", "on").stdout == b"on\n"
    rig.assert_clean()


# ---- 20, 21: a call that hangs


@pytest.mark.field_fault("20", "21")
def test_a_volume_on_a_dead_file_system(rig: Rig, tmp_path: Path) -> None:
    """Whoever asks again waits for the same create, and hears of no name that is reserved; all else works, and the pod can end."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    with dead_file_system(tmp_path / "nfs") as nfs:
        nfs.dies()

        def create() -> None:
            mount = cri.Mount(container_path="/data", host_path=str(nfs.path))
            config = cri.ContainerConfig(
                metadata=cri.ContainerMetadata(name="app"),
                image=cri.ImageSpec(image="orlop.test/busybox:latest"),
                command=["sleep", "1000"],
                mounts=[mount],
            )
            config.linux.security_context.namespace_options.CopyFrom(pod.config.linux.security_context.namespace_options)
            request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
            kubelet.runtime.CreateContainer(request, timeout=PATIENCE)

        for _ in range(5):
            with refused(CODE.DEADLINE_EXCEEDED):
                create()
        assert nfs.is_waited_for()
        other = kubelet.run_pod()
        assert kubelet.exec_sync(kubelet.run_container(other), "echo", "on").stdout == b"on\n"
        kubelet.stop_pod(pod)
        with refused(CODE.FAILED_PRECONDITION, "CreateContainer", pod.id):
            kubelet.remove_pod(pod)
        nfs.goes_away()
        until(lambda: code_of_call(lambda: kubelet.remove_pod(pod)) is CODE.OK, what="the pod can be removed")
    assert [item.id for item in kubelet.containers() if item.pod_sandbox_id == pod.id] == []


# ---- 22: a grace period of a day


@pytest.mark.field_fault("22")
def test_a_grace_period_of_a_day_holds_up_nobody(rig: Rig) -> None:
    """Nor does it after a restart of the daemon; a stop with less grace ends all of them."""
    kubelet = rig.kubelet
    pods = [kubelet.run_pod() for _ in range(3)]
    stubborn = [kubelet.run_container(pod, STUBBORN) for pod in pods]
    for container in stubborn:
        until(partial(has_made, kubelet, container, "/tmp/ready"), what="it ignores SIGTERM")

    def others_work() -> None:
        other = kubelet.run_pod()
        kubelet.stop(kubelet.run_container(other))
        kubelet.remove_pod(other)
        kubelet.stop(kubelet.run_container(pods[0]))  # beside one that is being stopped
        assert [kubelet.status(container).state for container in stubborn] == [cri.CONTAINER_RUNNING] * 3

    with ThreadPoolExecutor() as pool:
        cut_off = [pool.submit(kubelet.stop, container, 86400) for container in stubborn]
        others_work()
        rig.daemon.kill9()
        rig.daemon.start()
        assert {code_of(stop) for stop in cut_off} == {CODE.UNAVAILABLE}
        stops = [pool.submit(kubelet.stop, container, 86400) for container in stubborn]
        others_work()
        for container in stubborn:
            kubelet.stop(container, grace=1)
        assert {code_of(stop) for stop in stops} == {CODE.OK}
    assert {kubelet.status(container).exit_code for container in stubborn} == {137}


def has_made(kubelet: Client, container: str, path: str) -> bool:
    return kubelet.exec_sync(container, "test", "-e", path).exit_code == 0


# ---- 2, 3: many pods that last a moment


@pytest.mark.field_fault("2", "3", "S4")
def test_two_hundred_short_pods(rig: Rig) -> None:
    """As cron jobs make them; and in the middle of it the daemon is restarted with some of them alive."""
    kubelet = rig.kubelet

    def live(number: int) -> int:
        pod = kubelet.run_pod()
        container = kubelet.run_container(pod, ["sh", "-c", f"exit {number % 7}"])
        code = kubelet.wait_exit(container).exit_code
        kubelet.stop_pod(pod)
        kubelet.remove_pod(pod)
        return code

    lasting = [kubelet.run_pod() for _ in range(8)]
    containers = [kubelet.run_container(pod, ["sleep", "777777"]) for pod in lasting]
    statuses = [kubelet.status(container) for container in containers] + [kubelet.pod_status(pod) for pod in lasting]
    with ThreadPoolExecutor(8) as pool:
        for first in (0, 100):
            assert list(pool.map(live, range(first, first + 100))) == [number % 7 for number in range(first, first + 100)]
            rig.daemon.restart()
    assert statuses == [kubelet.status(container) for container in containers] + [kubelet.pod_status(pod) for pod in lasting]
    assert len(shims()) == len(lasting) + 1
    assert len(running("sleep", "777777")) == len(lasting)
