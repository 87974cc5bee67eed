"""Creates that fail half-way, or whose caller gives up: the pod stays usable, and nothing is left of the container that never was."""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Pod, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig, init_of
from tests.e2e.node import cgroups, mounts, runc_inits, shims

pytestmark = pytest.mark.e2e


@pytest.fixture(params=["first", "second"])
def pod(request: pytest.FixtureRequest, rig: Rig) -> Pod:
    """One without a container, or with one that runs."""
    pod = rig.kubelet.run_pod(log_directory=rig.log_directory())
    if request.param == "second":
        rig.kubelet.run_container(pod, name="first")
    return pod


def traces(rig: Rig, container: str) -> list[str]:
    """What there is of a container, but for its record and its writable layer."""
    bundle = rig.daemon.state / "io.containerd.runtime.v2.task/k8s.io" / container
    engine_state = rig.daemon.state / "runc/k8s.io" / container
    found = [str(path) for path in (bundle, engine_state, rig.daemon.state / "io" / container) if path.exists()]
    found += [str(process) for process in runc_inits()]
    found += [mount for mount in mounts() if container in mount]
    found += [cgroup for cgroup in cgroups() if container in cgroup]
    found += [f"{entry.kind} {entry.state}" for entry in rig.kubelet.ledger() if entry.container == container and entry.kind != "snapshot"]
    return found


def assert_gone(rig: Rig, container: str) -> None:
    until(lambda: not traces(rig, container), what="nothing is left of the container", detail=lambda: traces(rig, container))


def assert_usable(rig: Rig, pod: Pod) -> None:
    """The containers that ran before do so still, untouched, and the next one does as well."""
    kubelet = rig.kubelet
    assert kubelet.pod_status(pod).state == cri.SANDBOX_READY
    for container in kubelet.containers():
        if container.pod_sandbox_id == pod.id and container.state == cri.CONTAINER_RUNNING:
            assert kubelet.exec_sync(container.id, "echo", "on").stdout == b"on\n"
    again = kubelet.run_container(pod, ["sh", "-c", "echo next; exit 4"], name="app", attempt=1)
    assert kubelet.wait_exit(again).exit_code == 4
    assert [line.text for line in kubelet.logs(again)] == ["next"]


@pytest.mark.field_fault("12")
def test_a_missing_fifo(rig: Rig, pod: Pod) -> None:
    """The simplest way to make `runc create` succeed and Create fail, with an init that waits for ever (runtime-v2 6.4)."""
    kubelet = rig.kubelet
    before = [(shim.pid, shim.start_time) for shim in shims(pod.id)]
    running = {other.id: init_of(other.id) for other in kubelet.containers()}
    container = kubelet.create_container(pod, name="app")
    with rig.paused("runtime.task.create", lambda: kubelet.start(container)) as starting:
        (rig.daemon.state / "io" / container / "stdout").unlink()
    with refused(grpc.StatusCode.UNKNOWN, f"{container}/stdout", "no such file"):
        starting.result()
    assert_gone(rig, container)
    status = kubelet.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 128, "StartError")
    assert f"{container}/stdout" in status.message
    assert [(shim.pid, shim.start_time) for shim in shims(pod.id)] == before, "the pod's shim is another one"
    assert {other: init_of(other) for other in running} == running, "another container was touched"
    assert_usable(rig, pod)


@pytest.mark.field_fault("12")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_engine_is_killed(rig: Rig, moment: str) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod(log_directory=rig.log_directory(), handler="gated")
    container = kubelet.create_container(pod, name="app")
    with rig.gates.engine.shut(moment), ThreadPoolExecutor(1) as pool:
        starting = pool.submit(kubelet.start, container)
        until(rig.gates.engine.reached, what="the engine has come so far")
        for process in rig.gates.engine.processes():
            os.kill(process.pid, signal.SIGKILL)
        with refused(grpc.StatusCode.UNKNOWN, "create failed"):
            starting.result()
    assert_gone(rig, container)
    assert_usable(rig, pod)


KILL_IT = """
"$PROGRAM" "$@" &
sleep {seconds}
kill -KILL $!
wait $!
exit 137
"""


@pytest.mark.field_fault("12", "M5")
@pytest.mark.parametrize("seconds", [0.002, 0.005, 0.015], ids=lambda value: f"{value * 1000:.0f}ms")
def test_the_engine_is_killed_while_it_works(rig: Rig, seconds: float) -> None:
    """Where exactly it dies isn't known: without its state, with it, with an init; or not at all, when it was faster."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod(log_directory=rig.log_directory(), handler="gated")
    for attempt in range(3):
        container = kubelet.create_container(pod, name="killed", attempt=attempt)
        with rig.gates.engine.replaced(KILL_IT.format(seconds=seconds)), refused(grpc.StatusCode.UNKNOWN, "create failed"):
            kubelet.start(container)
        assert_gone(rig, container)
    assert_usable(rig, pod)


@pytest.mark.field_fault("8", "M4")
@pytest.mark.parametrize(
    ("killed", "moment"), [("daemon", "before"), ("daemon", "after"), ("shim", "after"), ("both", "after")], ids=lambda value: value
)
def test_killed_within_create(rig: Rig, killed: str, moment: str) -> None:
    """`before` the engine has done anything, or `after` it has made the init and before it could say so."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod(log_directory=rig.log_directory(), handler="gated")
    other = kubelet.run_container(pod, name="other")
    container = kubelet.create_container(pod, name="app")
    with rig.gates.engine.shut(moment), ThreadPoolExecutor(1) as pool:
        starting = pool.submit(kubelet.start, container)
        until(rig.gates.engine.reached, what="the engine has come so far")
        if killed != "daemon":
            os.kill(shims(pod.id)[0].pid, signal.SIGKILL)
        if killed != "shim":
            rig.daemon.kill9()
        with pytest.raises(grpc.RpcError):
            starting.result()
    if killed != "shim":
        rig.daemon.start()
    status = kubelet.wait_exit(container)
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert_gone(rig, container)
    if killed == "daemon":
        assert kubelet.status(other).state == cri.CONTAINER_RUNNING
    else:
        assert kubelet.wait_exit(other).reason == "Unknown"
    assert_usable(rig, pod)


PATIENCE = [0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2]  # seconds


@pytest.mark.field_fault("0a")
@one_pair
@pytest.mark.parametrize("deadline", PATIENCE, ids=lambda value: f"{value * 1000:.0f}ms")
def test_a_client_gives_up(rig: Rig, deadline: float) -> None:
    """The verb goes on without it, and the next call with the same request joins it or finds it done (field-faults 0a)."""
    kubelet = rig.kubelet
    config = kubelet.pod_config(log_directory=rig.log_directory())
    with contextlib.suppress(grpc.RpcError):
        kubelet.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=deadline)
    try:
        pod = kubelet.run_again(config)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
        [found] = [item for item in kubelet.pods() if item.metadata.uid == config.metadata.uid]
        pod = Pod(found.id, config)
    assert kubelet.pod_status(pod).state == cri.SANDBOX_READY
    container = kubelet.create_container(pod, name="app")
    with contextlib.suppress(grpc.RpcError):
        kubelet.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=deadline / 2)
    until(lambda: started(rig, container), what="the container runs, or was never started")
    assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"
    for call, request in (
        (kubelet.runtime.StopContainer, cri.StopContainerRequest(container_id=container)),
        (kubelet.runtime.RemoveContainer, cri.RemoveContainerRequest(container_id=container)),
        (kubelet.runtime.StopPodSandbox, cri.StopPodSandboxRequest(pod_sandbox_id=pod.id)),
        (kubelet.runtime.RemovePodSandbox, cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id)),
    ):
        with contextlib.suppress(grpc.RpcError):
            call(request, timeout=deadline / 2)
        call(request)
    assert pod.id not in [item.id for item in kubelet.pods()]


def started(rig: Rig, container: str) -> bool:
    """Whether it runs; a call that never reached the agent is made again."""
    state = rig.kubelet.status(container).state
    if state == cri.CONTAINER_CREATED:
        with contextlib.suppress(grpc.RpcError):
            rig.kubelet.start(container)
    return state == cri.CONTAINER_RUNNING
