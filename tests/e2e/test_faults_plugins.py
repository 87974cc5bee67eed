"""What others make and the agent calls: shims and network plugins that are missing, fail, print garbage or hang.

Each ends with the right code and a sentence, leaves nothing, and holds nobody else up.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig, shim_of

pytestmark = [pytest.mark.e2e, one_pair]

TIMEOUTS = "SHIM_START=1;CNI=2;RELEASE_RETRY=1;DAEMON_STOP=2"  # instead of 30, 120, 300 and 20 seconds
HANG = "sleep 1000"
CODE = grpc.StatusCode


# ---- shims


def test_no_shim_binary(rig: Rig) -> None:
    with refused(CODE.NOT_FOUND, "'missing'", "/no/such/shim"):
        rig.kubelet.run_pod(handler="missing")
    rig.assert_clean()


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo this is no address", CODE.INTERNAL, ("this is no address",)),
        ("exit 0", CODE.INTERNAL, ("nothing",)),
        ("echo something is wrong >&2; exit 3", CODE.UNKNOWN, ("ended with 3", "something is wrong")),
        ("echo unix:///run/no-such-socket", CODE.UNAVAILABLE, ("/run/no-such-socket",)),
        (HANG, CODE.DEADLINE_EXCEEDED, ("1 s",)),
    ],
    ids=["garbage", "nothing", "error", "nobody listens", "hangs"],
)
def test_a_shim_binary_that_is_none(rig: Rig, script: str, code: grpc.StatusCode, words: tuple[str, ...]) -> None:
    with rig.gates.shim.replaced(script), refused(code, *words):
        rig.kubelet.run_pod(handler="gated")
    assert rig.gates.shim.processes() == []
    rig.assert_clean()
    rig.kubelet.run_container(rig.kubelet.run_pod(handler="gated"))


@pytest.mark.field_fault("9")
def test_no_new_shim_after_the_old_one_died(rig: Rig) -> None:
    """The pod can't run containers until there is one; stopping and removing it needs none."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod(handler="gated")
    container = kubelet.run_container(pod)
    with rig.gates.shim.replaced("echo not now >&2; exit 1"):
        os.kill(shim_of(pod).pid, signal.SIGKILL)
        assert kubelet.wait_exit(container).reason == "Unknown"
        with refused(CODE.UNKNOWN, "not now"):
            kubelet.run_container(pod)
    assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"
    with rig.gates.shim.replaced("echo not now >&2; exit 1"):
        os.kill(shim_of(pod).pid, signal.SIGKILL)
        kubelet.stop_pod(pod)
        kubelet.remove_pod(pod)
    rig.assert_clean()


# ---- network plugins


@pytest.mark.field_fault("18", "30", "S4")
@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo garbage", CODE.INTERNAL, ("bridge", "ADD", "garbage")),
        ("exit 0", CODE.INTERNAL, ("bridge", "ADD", "nothing")),
        ("exit 7", CODE.UNKNOWN, ("bridge", "ADD", "exit status 7")),
        ("""echo '{"cniVersion": "1.0.0", "code": 100, "msg": "no cable"}'; exit 1""", CODE.UNKNOWN, ("bridge", "ADD", "no cable")),
        ("""echo '{"cniVersion": "1.0.0", "code": 11, "msg": "not yet"}'; exit 1""", CODE.UNAVAILABLE, ("bridge", "ADD", "not yet")),
        (HANG, CODE.DEADLINE_EXCEEDED, ("bridge", "ADD", "2 s", "killed")),
    ],
    ids=["garbage", "nothing", "fails", "says why", "says to try again", "hangs"],
)
def test_a_network_plugin_that_does_not_add(rig: Rig, script: str, code: grpc.StatusCode, words: tuple[str, ...]) -> None:
    with rig.gates.add.replaced(script), refused(code, *words):
        rig.kubelet.run_pod()
    assert rig.gates.add.processes() == []
    rig.assert_clean()
    rig.kubelet.run_container(rig.kubelet.run_pod())


@pytest.mark.field_fault("18", "19")
@pytest.mark.parametrize("script", ["echo no cable; exit 7", HANG], ids=["fails", "hangs"])
def test_a_network_plugin_that_does_not_delete(rig: Rig, script: str) -> None:
    """The kubelet is told that the addresses aren't free yet; the agent goes on trying, and needs nobody for it."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    with rig.gates.delete.replaced(script):
        for stop in (kubelet.stop_pod, kubelet.remove_pod):
            with refused(CODE.FAILED_PRECONDITION, "cni", "bridge", "DEL"):
                stop(pod)
        assert kubelet.status(container).state == cri.CONTAINER_EXITED
        assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
        until(
            lambda: [entry.kind for entry in kubelet.ledger() if entry.sandbox == pod.id and entry.error] == ["cni"], what="it is told why"
        )
        kubelet.run_container(kubelet.run_pod(), ["true"])
    until(
        lambda: not [entry for entry in kubelet.ledger() if entry.sandbox == pod.id and entry.kind in ("cni", "netns")],
        what="the addresses are free",
    )
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)


def test_a_network_plugin_that_dies_in_the_middle_of_a_delete(rig: Rig) -> None:
    """Its next call finds no interface any more, by which it would know what chains of the nat table it has made."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    dies = rig.gates.delete.replaced("nsenter --net=$CNI_NETNS ip link delete $CNI_IFNAME; kill -9 $$")
    with dies, refused(CODE.FAILED_PRECONDITION, "bridge", "DEL", "signal 9"):
        kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)
    rig.assert_clean()


def test_a_network_plugin_that_hangs_while_recovering(rig: Rig) -> None:
    """What a crash left can't be released; verbs for other pods don't wait for that."""
    kubelet = rig.kubelet
    rig.daemon.failpoints("pods.sandbox_run.record=crash")
    assert rig.dies(kubelet.run_pod)
    with rig.gates.delete.replaced(HANG):
        begin = time.monotonic()
        rig.daemon.start()
        kubelet.run_container(kubelet.run_pod(), ["true"])
        assert time.monotonic() - begin < 10
        rig.daemon.stop()  # in its budget, though the plugin hangs
        rig.daemon.start()
    rig.tidy()
    rig.assert_clean()


@contextmanager
def no_network(rig: Rig) -> Iterator[None]:
    [conflist] = rig.daemon.cni.iterdir()
    hidden = conflist.rename(conflist.with_suffix(".off"))
    try:
        yield
    finally:
        hidden.rename(conflist)


def network(kubelet: Client) -> cri.RuntimeCondition:
    answer: cri.StatusResponse = kubelet.runtime.Status(cri.StatusRequest())
    return next(condition for condition in answer.status.conditions if condition.type == "NetworkReady")


def test_an_empty_configuration_directory(rig: Rig) -> None:
    """No pod network: said in Status and by each RunPodSandbox; pods on the host's network run, the others run on and can go."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    kubelet.run_container(pod)
    with no_network(rig):
        until(lambda: not network(kubelet).status, what="Status says so")
        assert str(rig.daemon.cni) in network(kubelet).message
        with refused(CODE.UNAVAILABLE, str(rig.daemon.cni)):
            kubelet.run_pod()
        kubelet.run_container(kubelet.run_pod(namespaces=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER, ipc=cri.POD)))
        kubelet.stop_pod(pod)
        kubelet.remove_pod(pod)
    until(lambda: network(kubelet).status, what="Status says that it is there again")
    kubelet.run_pod()


def test_a_stop_of_the_daemon_beside_what_hangs(rig: Rig) -> None:
    kubelet = rig.kubelet
    with rig.gates.add.replaced(HANG), ThreadPoolExecutor(1) as pool:
        running = pool.submit(kubelet.run_pod)
        until(rig.gates.add.processes, what="the plugin hangs")
        begin = time.monotonic()
        rig.daemon.stop()
        assert time.monotonic() - begin < 10
        with pytest.raises(grpc.RpcError):
            running.result()
    rig.daemon.start()
    until(lambda: rig.gates.add.processes() == [], what="it is dead")
    rig.assert_clean()
