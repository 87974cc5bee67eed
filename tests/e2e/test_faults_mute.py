"""SIGSTOP of a pod's shim: nobody else is held up, what has to end ends, and a restart doesn't take it for dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Pod, until
from tests.e2e.faults import Rig, init_of, shim_of, wait_for_new_shim
from tests.e2e.node import Process, runc_inits, shims

pytestmark = pytest.mark.e2e

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


def test_a_stopped_shim_holds_nobody_up(rig: Rig) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container, other = kubelet.run_container(pod), kubelet.run_container(pod)
    shim = shim_of(pod)
    with stopped(shim):
        assert_answers(rig, pod, container)
        assert kubelet.exec_sync(rig.counter, "echo", "on").stdout == b"on\n", "another pod is held up"
        begin = time.monotonic()
        kubelet.stop(container)
        assert time.monotonic() - begin < 10, "the ladder: Kill and its exit, a second each, then the shim is killed"
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
    rig.assert_clean()


def test_a_stopped_shim_and_a_restart(rig: Rig) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod(log_directory=rig.log_directory())
    container = kubelet.run_container(pod, ["sh", "-c", "echo begun; sleep 1000000"])
    ends = kubelet.run_container(pod, ["sh", "-c", "until [ -e /tmp/stop ]; do sleep 0.05; done; exit 6"])
    init, shim = init_of(container), shim_of(pod)
    with stopped(shim):
        rig.daemon.kill9()
        rig.daemon.start()
        assert_answers(rig, pod, container)
        rig.daemon.wait_recovered()
        assert kubelet.exec_sync(rig.counter, "echo", "on").stdout == b"on\n", "another pod is held up"
        assert_answers(rig, pod, container)
    assert shim_of(pod).pid == shim.pid
    assert init_of(container) == init
    until(lambda: kubelet.exec_sync(container, "echo", "on").stdout == b"on\n", what="the shim is reached again")
    kubelet.exec_sync(ends, "touch", "/tmp/stop")
    assert kubelet.wait_exit(ends).exit_code == 6
    kubelet.stop(container)
    assert kubelet.status(container).exit_code == 137
    assert [line.text for line in kubelet.logs(container)] == ["begun"]
    assert runc_inits() == []
