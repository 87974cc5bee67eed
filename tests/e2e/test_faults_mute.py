"""SIGSTOP of a pod's shim: nobody else is held up, what has to end ends, and a restart doesn't take it for dead."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Pod
from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig, init_of, release, shim_of, wait_for_new_shim
from tests.e2e.node import Process, runc_inits, shims

pytestmark = [pytest.mark.e2e, one_pair]  # of the rest; shims are stopped with all at once

TIMEOUTS = "TASK_KILL=1;EXIT_AFTER_KILL=1;EXIT_AFTER_CGROUP_KILL=1;SHIM_LOAD=1;SHIM_PING=1"  # instead of five and ten seconds
AT_ONCE = 1.0  # seconds; what is answered from memory takes a few milliseconds, on an idle machine


@contextmanager
def stopped(shim: Process) -> Iterator[None]:
    """Inside, the shim runs no code."""
    os.kill(shim.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if shim.pid in [other.pid for other in shims()]:
            os.kill(shim.pid, signal.SIGCONT)


def assert_answers(rig: Rig, pod: Pod, container: str) -> None:
    """List and Status come from memory, whatever a shim does."""
    begin = time.monotonic()
    assert pod.id in [item.id for item in rig.kubelet.pods()]
    assert container in [item.id for item in rig.kubelet.containers()]
    assert rig.kubelet.status(container).state == cri.CONTAINER_RUNNING
    assert rig.kubelet.pod_status(pod).state == cri.SANDBOX_READY
    assert time.monotonic() - begin < AT_ONCE


@pytest.mark.field_fault("2", "23", "27", "M7")
def test_a_stopped_shim_holds_nobody_up(rig: Rig) -> None:
    kubelet = rig.kubelet

    def stop(handler: str) -> None:
        pod = kubelet.run_pod(handler=handler)
        container, other = kubelet.run_container(pod), kubelet.run_container(pod)
        shim = shim_of(pod)
        with stopped(shim):
            assert_answers(rig, pod, container)
            assert kubelet.exec_sync(rig.counter, "echo", "on").stdout == b"on\n", "another pod is held up"
            begin = time.monotonic()
            kubelet.stop(container)
            assert time.monotonic() - begin < 10, "the ladder: Kill, its exit, that of the cgroup, a second each; then the shim is killed"
            status = kubelet.status(container)
            assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 255, "Unknown")
            assert "killed, because something in it did not end" in status.message
            assert init_of(container) == []
            assert kubelet.wait_exit(other).reason == "Unknown"
        wait_for_new_shim(pod, shim)
        again = kubelet.run_container(pod)
        with stopped(shim_of(pod)):
            begin = time.monotonic()
            kubelet.stop_pod(pod)
            kubelet.remove_pod(pod)
            assert time.monotonic() - begin < 20
        assert init_of(again) == []

    rig.with_each_pair(stop)
    rig.assert_clean()


@pytest.mark.field_fault("0b", "6", "27")
def test_a_stopped_shim_and_a_restart(rig: Rig) -> None:
    """It is not taken for dead, and its containers are right when it goes on."""
    kubelet = rig.kubelet
    pods: dict[str, tuple[Pod, str, str]] = {}

    def begin(handler: str) -> None:
        pod = kubelet.run_pod(log_directory=rig.log_directory(), handler=handler)
        runs = kubelet.run_container(pod, ["sh", "-c", "echo begun; sleep 1000000"])
        ends = kubelet.run_container(pod, ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done; exit 6"])
        pods[handler] = pod, runs, ends

    rig.with_each_pair(begin)
    inits = {runs: init_of(runs) for _, runs, _ in pods.values()}
    frozen = {pod.id: shim_of(pod) for pod, _, _ in pods.values()}
    with contextlib.ExitStack() as stack:
        for shim in frozen.values():
            stack.enter_context(stopped(shim))
        rig.daemon.kill9()
        rig.daemon.start()
        for pod, runs, _ in pods.values():
            assert_answers(rig, pod, runs)
        rig.daemon.wait_recovered()
        assert kubelet.exec_sync(rig.counter, "echo", "on").stdout == b"on\n", "another pod is held up"
        for pod, runs, ends in pods.values():
            assert_answers(rig, pod, runs)
            release(ends)

    def go_on(handler: str) -> None:
        pod, runs, ends = pods[handler]
        assert kubelet.wait_exit(ends).exit_code == 6
        assert (shim_of(pod).pid, init_of(runs)) == (frozen[pod.id].pid, inits[runs])
        assert kubelet.exec_sync(runs, "echo", "on").stdout == b"on\n"
        kubelet.stop(runs)
        assert kubelet.status(runs).exit_code == 137
        assert [line.text for line in kubelet.logs(runs)] == ["begun"]

    rig.with_each_pair(go_on)
    assert runc_inits() == []
