"""Calls beside calls, and ends beside both: each of these once left something running, or let somebody wait for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.inside import linux
from tests.e2e.node import shims
from tests.e2e.races import code_of, mute, owned, process_with_number, running

pytestmark = [pytest.mark.e2e, one_pair]

OK = grpc.StatusCode.OK
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


# ---- a verb beside another


@pytest.mark.field_fault("S2")
def test_a_container_that_is_being_removed_is_not_started(daemon: Daemon, beside: ThreadPoolExecutor) -> None:
    """Both succeeded, and its process ran on without a record."""
    kubelet = daemon.client
    pod = kubelet.run_pod()
    container = kubelet.create_container(pod, ["sleep", "777777"])
    daemon.failpoints("store.release.act=delay(1.5)")
    removing = beside.submit(kubelet.remove, container)
    until(lambda: "store.release.act" in daemon.failpoints(), what="the removal is under way")
    starting = beside.submit(kubelet.start, container)
    assert (code_of(removing), code_of(starting)) == (OK, PRECONDITION)
    assert kubelet.containers() == []
    assert owned(kubelet, container) == []
    assert not running("sleep", "777777")


@pytest.mark.field_fault("20", "S2")
@pytest.mark.parametrize("daemon", ["IN_FLIGHT=1"], indirect=True)
def test_a_create_that_hangs_does_not_hold_up_the_end_of_its_pod(daemon: Daemon, beside: ThreadPoolExecutor) -> None:
    """On a disk that hangs, say: StopPodSandbox waited for it for ever. It must not end in a pod that is gone, nor leave anything."""
    kubelet = daemon.client
    pod = kubelet.run_pod()
    daemon.failpoints("pods.container_create.snapshot=delay(6)")
    creating = beside.submit(kubelet.create_container, pod)
    until(lambda: "pods.container_create.snapshot" in daemon.failpoints(), what="the create hangs")
    begin = time.monotonic()
    kubelet.stop_pod(pod)
    assert time.monotonic() - begin < 5
    assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
    assert owned(kubelet, pod.id) == ["sandbox_dir", "snapshot"]
    assert code_of(beside.submit(kubelet.remove_pod, pod)) is PRECONDITION
    assert not creating.done()
    assert code_of(creating) is PRECONDITION
    assert kubelet.containers() == []
    kubelet.remove_pod(pod)
    assert kubelet.ledger() == []


@pytest.mark.field_fault("23", "S2")
@pytest.mark.parametrize("daemon", ["IN_FLIGHT=1"], indirect=True)
def test_a_start_that_hangs_outside_of_its_shim_lets_nobody_wait_for_ever(daemon: Daemon, beside: ThreadPoolExecutor) -> None:
    kubelet = daemon.client
    pod = kubelet.run_pod()
    container = kubelet.create_container(pod)
    daemon.failpoints("pods.container_start.stdio=delay(12)")
    starting = beside.submit(kubelet.start, container)
    until(lambda: "pods.container_start.stdio" in daemon.failpoints(), what="the start hangs")
    assert code_of(beside.submit(kubelet.stop, container)) is DEADLINE
    assert code_of(beside.submit(kubelet.stop_pod, pod)) is DEADLINE
    assert not starting.done()
    assert code_of(starting) is PRECONDITION
    assert kubelet.status(container).reason == "StartError"
    kubelet.remove_pod(pod)
    assert kubelet.ledger() == []


def test_the_network_goes_beside_a_delete_that_takes_its_time(daemon: Daemon, beside: ThreadPoolExecutor) -> None:
    """With no process left in it, its plugins, which take longest, don't wait for the shim. The namespace does."""
    kubelet = daemon.client
    pod = kubelet.run_pod()
    kubelet.run_container(pod)
    daemon.failpoints("cleanup.task_delete=pause")
    stopping = beside.submit(kubelet.stop_pod, pod)
    until(lambda: "cni" not in owned(kubelet, pod.id), what="the network is released")
    assert {"task", "shim", "netns"} <= set(owned(kubelet, pod.id))
    assert not stopping.done()
    daemon.failpoints("")
    assert code_of(stopping) is OK


# ---- a shim that doesn't answer, a container that doesn't end


def test_a_probe_is_over_after_its_timeout_though_the_shim_does_not_answer(daemon: Daemon) -> None:
    """The timeout counted from the start of the command on, so that each probe of a kubelet waited for the shim."""
    kubelet = daemon.client
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    with mute(pod):
        begin = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            kubelet.exec_sync(container, "sleep", "7777", timeout=1)
        assert refused.value.code() is DEADLINE
        assert time.monotonic() - begin < 5
    until(lambda: owned(kubelet, container) == ["fifo", "log", "snapshot", "task"], what="nothing of the exec is left", within=60)
    assert not running("sleep", "7777")
    assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"


@pytest.mark.field_fault("23")
@pytest.mark.parametrize("daemon", ["EXIT_AFTER_KILL=1"], indirect=True)
def test_a_container_that_its_shim_can_not_kill_is_killed_alone(daemon: Daemon, tmp_path: Path) -> None:
    """The shim was killed next, and with it the pod's other containers. Their cgroups need nobody's help."""
    kubelet, refuses = daemon.client, tmp_path / "refuses"
    engine = tmp_path / "engine"
    engine.write_text(
        f'#!/bin/sh\nfor word; do [ "$word" = kill ] && [ -e {refuses} ] && exit 1; done\nexec {daemon.pair.engine_path} "$@"\n'
    )
    engine.chmod(0o755)
    daemon.stop()
    with daemon.config.open("a") as config:
        config.write(f'\n[runtimes.refusing]\npath = "{daemon.pair.shim_path}"\nengine = "{engine}"\n')
    daemon.start()
    pod = kubelet.run_pod(handler="refusing")
    container, other = kubelet.run_container(pod, ["sleep", "777777"]), kubelet.run_container(pod)
    before = shims(pod.id)
    refuses.touch()
    kubelet.stop(container)
    assert kubelet.status(container).exit_code == 137
    assert not running("sleep", "777777")
    assert shims(pod.id) == before
    assert kubelet.exec_sync(other, "echo", "on").stdout == b"on\n"
    refuses.unlink()


# ---- a process that is not the one that was meant


def test_the_namespace_of_a_process_that_ended_is_not_joined(daemon: Daemon) -> None:
    """Between create and start its number came to mean a stranger's, here one in the node's own PID namespace."""
    kubelet = daemon.client
    pod = kubelet.run_pod()
    target = kubelet.run_container(pod, ["sleep", "777777"])
    [number] = running("sleep", "777777")
    namespaces = cri.NamespaceOption(network=cri.POD, pid=cri.TARGET, target_id=target)
    debugger = kubelet.create_container(pod, ["sleep", "888888"], linux=linux(namespace_options=namespaces))
    kubelet.stop(target)
    with process_with_number(number):
        with pytest.raises(grpc.RpcError) as refused:
            kubelet.start(debugger)
        assert refused.value.code() is PRECONDITION
        assert not running("sleep", "888888")
    assert kubelet.status(debugger).reason == "StartError"


# ---- the daemon's end


def test_the_daemon_ends_in_time_whatever_is_under_way(daemon: Daemon, beside: ThreadPoolExecutor) -> None:
    """Each part had 20 s of its own, and the end took a minute and a half."""
    kubelet = daemon.client
    stubborn, probed, unanswering, stuck, created = (kubelet.run_pod() for _ in range(5))
    deaf = kubelet.run_container(stubborn, ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    container, unanswered = kubelet.run_container(probed), kubelet.run_container(unanswering)
    daemon.failpoints("network.delete.cache=hang;pods.container_create.snapshot=hang;cleanup.shutdown=delay(600)")
    calls: list[Future[Any]] = [
        beside.submit(kubelet.stop, deaf, 300),
        beside.submit(kubelet.exec_sync, container, "sleep", "7777", timeout=0),
        beside.submit(kubelet.stop_pod, stuck),
        beside.submit(kubelet.create_container, created),
    ]
    with mute(unanswering):
        calls.append(beside.submit(kubelet.exec_sync, unanswered, "sleep", "7778", timeout=0))
        until(lambda: running("sleep", "7777"), what="the command runs")
        time.sleep(0.5)
        assert not any(call.done() for call in calls)
        begin = time.monotonic()
        daemon.stop()
        took = time.monotonic() - begin
    assert took < 18
    assert {code_of(call) for call in calls} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    daemon.start()
    until(lambda: not running("sleep", "7777") + running("sleep", "7778"), what="the commands have ended")
    for pod in (stubborn, probed, unanswering, stuck, created):
        kubelet.remove_pod(pod)
    assert kubelet.ledger() == []


def test_a_signal_right_at_the_start(daemon: Daemon) -> None:
    daemon.stop()
    daemon.start(failpoints="runtime.load.shim=hang")
    daemon.stop()
    daemon.start(wait=False)
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_gone(within=20) in (0, -signal.SIGTERM)
    daemon.start()
