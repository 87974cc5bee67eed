"""Shims that misbehave: whatever one does wrong, and goes on doing, its pod can be taken down, in order, and nothing is left of it.

The failpoint shim (`tests/e2e/failshim`) stands before each of the real ones, with a handler for each kind of misbehaviour, so that all of
them are tried at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.failshim.install import FailShim
from tests.e2e.faults import Rig, init_of, shim_of
from tests.e2e.node import mounts, processes
from tests.e2e.tasks import PLUGIN
from tests.e2e.toolbox import PAIRS

pytestmark = [pytest.mark.e2e, one_pair]  # of the bystander; the others are behind the failpoint shims

TIMEOUTS = (
    "SHIM_START=10;SHIM_DIAL=2;SHIM_PING=1;SHIM_LOAD=1;SHIM_SILENT=2;SHIM_SHUTDOWN=1;SHIM_DELETE=6;TASK_DELETE=6;TASK_KILL=1;"
    "EXIT_AFTER_KILL=1;EXIT_AFTER_CGROUP_KILL=1;IN_FLIGHT=2;RELEASE_RETRY=1"
)
KINDS = ("error", "missing", "lies", "mute", "mute-after", "slow", "crash", "crash-after", "garbage")
ACTION_KINDS = ("error", "lies", "mute", "mute-after", "slow", "crash", "crash-after", "garbage")
IMPATIENT = 4.0  # seconds that a caller waits
METRICS = "127.0.0.1:9746"

Shims = dict[str, FailShim]


@pytest.fixture(scope="module")
def failshims(faulty_daemon: Rig, tmp_path_factory: pytest.TempPathFactory) -> Shims:
    """One for each kind, in front of one pair after the other; the handlers are called as the kinds."""
    home = tmp_path_factory.mktemp("failshims")
    made = {kind: FailShim(home / kind, PAIRS[number % len(PAIRS)]) for number, kind in enumerate(KINDS)}
    settings = "".join(failshim.handler(kind) for kind, failshim in made.items())
    made["task"] = FailShim(home / "task", PAIRS[-1])
    settings += made["task"].handler("task-mode", sandbox="task")
    drop_ins = faulty_daemon.daemon.config.parent / "conf.d"
    (drop_ins / "failshims.toml").write_text(f'metrics_address = "{METRICS}"\n{settings}')
    faulty_daemon.daemon.restart()
    return made


def metric(name: str) -> float:
    """The sum of a metric's values, over all its labels."""
    with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[{{ ]", line))


def with_each(kinds: tuple[str, ...], work: Callable[[str], None]) -> None:
    """Does `work` with each kind of misbehaviour, at the same time: it mostly waits."""
    with ThreadPoolExecutor(len(kinds)) as pool:
        works = {kind: pool.submit(work, kind) for kind in kinds}
    failures = {kind: failure for kind, done in works.items() if (failure := done.exception()) is not None}
    for kind, failure in failures.items():
        failure.add_note(f"with a shim that does this: {kind}; and these failed: {', '.join(failures)}")
        raise failure


def persist(act: Callable[[], object], what: str) -> None:
    """As a kubelet does: tries until it works."""
    failures = []

    def tried() -> bool:
        try:
            act()
        except grpc.RpcError as error:
            failures.append(error.details())
            return False
        return True

    until(tried, what=what, within=40, detail=lambda: failures[-1:])


def attempt(act: Callable[[], object]) -> None:
    with contextlib.suppress(grpc.RpcError):
        act()


def start_impatiently(kubelet: Client, container: str) -> None:
    attempt(lambda: kubelet.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=IMPATIENT))


def take_down(rig: Rig, pod: Pod) -> None:
    """Stops and removes a pod, whatever its shim does, and sees that nothing is left of it in the ledger."""
    kubelet = rig.kubelet
    persist(lambda: kubelet.stop_pod(pod), "the pod can be stopped")
    persist(lambda: kubelet.remove_pod(pod), "the pod can be removed")
    assert_released(kubelet, pod)


def assert_released(kubelet: Client, pod: Pod) -> None:
    def left() -> list[str]:
        return [f"{entry.kind} {entry.key}: {entry.error}" for entry in kubelet.ledger() if entry.sandbox == pod.id]

    until(lambda: not left(), what="nothing of the pod is in the ledger", detail=left)


def assert_in_order(rig: Rig, begin: int, container: str) -> None:
    """`shim delete`, where one is needed, then unmount, then the bundle."""
    order = [step for step, subject in rig.steps(begin) if subject == container and step in ("shim_delete", "unmount", "bundle")]
    assert order[-1:] == ["bundle"], order
    assert "shim_delete" not in order[order.index("unmount") :], order


@pytest.mark.field_fault("4", "23")
@pytest.mark.parametrize("method", ["Create", "Start", "Kill", "Delete"])
def test_a_method(rig: Rig, failshims: Shims, method: str) -> None:
    """Of the task service, while the container is started, stopped and removed by a kubelet that gives up and comes again."""

    def misbehave(kind: str) -> None:
        kubelet, failshim = rig.kubelet, failshims[kind]
        pod = kubelet.run_pod(handler=kind)
        container = kubelet.create_container(pod)
        begin = rig.daemon.log.stat().st_size
        with failshim.faults(f"{method} {kind}"):
            start_impatiently(kubelet, container)
            attempt(lambda: kubelet.runtime.StopContainer(cri.StopContainerRequest(container_id=container), timeout=IMPATIENT))
            attempt(lambda: kubelet.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=IMPATIENT))
            take_down(rig, pod)
        assert_in_order(rig, begin, container)
        assert init_of(container) == []

    with_each(KINDS, misbehave)
    rig.assert_clean()


def test_delete_after_a_dead_shim(rig: Rig, failshims: Shims) -> None:
    """The action, which is all that there is of a shim that was killed. The agent looks for itself what is left, whatever it says."""
    before = metric("orlop_shim_delete_lies_total")

    def misbehave(kind: str) -> None:
        kubelet, failshim = rig.kubelet, failshims[kind]
        pod = kubelet.run_pod(handler=kind)
        container = kubelet.run_container(pod)
        begin = rig.daemon.log.stat().st_size
        with failshim.faults(f"delete {kind}"):
            os.kill(shim_of(pod).pid, signal.SIGKILL)
            assert kubelet.wait_exit(container).reason == "Unknown"
            assert init_of(container) == []
            take_down(rig, pod)
        assert_in_order(rig, begin, container)

    with_each(ACTION_KINDS, misbehave)
    assert metric("orlop_shim_delete_lies_total") > before
    rig.assert_clean()


def test_start(rig: Rig, failshims: Shims) -> None:
    """It is told why there is no pod, nothing is left of it, and the next attempt works."""

    def misbehave(kind: str) -> None:
        kubelet, failshim = rig.kubelet, failshims[kind]
        config = kubelet.pod_config(f"begins-with-{kind}")
        with failshim.faults(f"start {kind}"):
            if kind == "slow":
                kubelet.remove_pod(kubelet.run_again(config, handler=kind))
                return
            with pytest.raises(grpc.RpcError) as failure:
                kubelet.run_again(config, handler=kind)
            assert failure.value.code() in (
                grpc.StatusCode.UNKNOWN,
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNAVAILABLE,
            )
        assert [process for process in processes() if str(failshim.path) in process.argv[0:1]] == []
        pod = kubelet.run_again(config, handler=kind)
        assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"
        take_down(rig, pod)

    with_each(("error", "lies", "mute", "slow", "crash", "crash-after", "garbage"), misbehave)
    rig.assert_clean()


def unmounts_that_failed(rig: Rig, begin: int) -> list[str]:
    return [event["id"] for event in rig.events(begin) if event["event"] == "teardown step failed" and event["step"] == "unmount"]


@pytest.mark.field_fault("15", "16")
@pytest.mark.parametrize("end", ["in order", "dead shim", "dead shim and daemon"])
def test_mounts_over_the_rootfs_that_only_its_delete_takes_away(rig: Rig, failshims: Shims, end: str) -> None:
    """As Kata's. Whoever unmounts before `shim delete` finds it busy: nobody does, and so it never is."""
    kubelet = rig.kubelet
    busy = metric("orlop_mount_busy_total")

    def over(kind: str) -> None:
        failshim = failshims[kind]
        pod = kubelet.run_pod(handler=kind)
        begin = rig.daemon.log.stat().st_size
        with failshim.faults("Create overlay"):
            containers = [kubelet.run_container(pod) for _ in range(2)]
        holders = [failshim.holder_of(container) for container in containers]
        assert all(len(mounts_of(container)) == 2 for container in containers)
        if end != "in order":
            if end == "dead shim and daemon":
                rig.daemon.kill9()
            os.kill(shim_of(pod).pid, signal.SIGKILL)
            if end == "dead shim and daemon":
                rig.daemon.start()
            for container in containers:
                assert kubelet.wait_exit(container).reason == "Unknown"
        take_down(rig, pod)
        for container in containers:
            assert_in_order(rig, begin, container)
        assert unmounts_that_failed(rig, begin) == []
        assert [process for process in processes() if process.pid in holders] == []

    if end == "dead shim and daemon":
        over("error")
    else:
        with_each(KINDS[: len(PAIRS)], over)
        assert metric("orlop_mount_busy_total") == busy
    rig.assert_clean()


def mounts_of(container: str) -> list[str]:
    return [mount for mount in mounts() if f"/{container}/rootfs " in mount]


@pytest.mark.field_fault("15")
def test_mounts_that_a_shim_keeps_until_its_end(rig: Rig, failshims: Shims) -> None:
    """Its Delete doesn't take them away either: who holds them is told by ledger, explain and metrics, until the pod goes."""
    kubelet = rig.kubelet
    counted = metric("orlop_mount_busy_holders_total")

    def keep(kind: str) -> None:
        failshim = failshims[kind]
        pod = kubelet.run_pod(handler=kind)
        with failshim.faults("Create overlay"):
            container = kubelet.run_container(pod)
        holder = failshim.holder_of(container)
        by = rf"process {holder} \(sleep 1000000\) by its fd \S+/{container}/rootfs, in mount namespace mnt:\[\d+\], cgroup "

        def told() -> str:
            return "".join(entry.error for entry in kubelet.ledger() if (entry.kind, entry.key) == ("task", container))

        with failshim.faults("Delete keeps"):
            kubelet.stop(container)
            until(lambda: re.search(by, told()), what="the ledger names who holds it", detail=told)
            if kind == KINDS[0]:
                assert re.search(by, rig.daemon.orlop("--config", rig.daemon.config, "explain", container).stdout)
            assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n", "the pod can't be used"
            take_down(rig, pod)

    with_each(KINDS[:3], keep)
    assert metric("orlop_mount_busy_holders_total") > counted
    rig.assert_clean()


def test_mounts_that_delete_says_it_has_taken_away(rig: Rig, failshims: Shims) -> None:
    """The rest of the container goes, the busy mount stays owned and says by whom; the next `shim delete` that works releases it."""
    kubelet, failshim = rig.kubelet, failshims["lies"]
    lies = metric("orlop_shim_delete_lies_total")
    pod = kubelet.run_pod(handler="lies")
    with failshim.faults("Create overlay"):
        container = kubelet.run_container(pod)
    holder = failshim.holder_of(container)
    with failshim.faults("delete lies"):
        os.kill(shim_of(pod).pid, signal.SIGKILL)
        assert kubelet.wait_exit(container).reason == "Unknown"
        assert init_of(container) == []
        until(
            lambda: [entry for entry in kubelet.ledger() if entry.key == container and f"process {holder} (sleep" in entry.error],
            what="the ledger names who holds it",
        )
        persist(lambda: kubelet.stop_pod(pod), "the pod can be stopped")
        persist(lambda: kubelet.remove_pod(pod), "the pod can be removed")
        assert {entry.kind for entry in kubelet.ledger() if entry.sandbox == pod.id} <= {"task", "snapshot", "sandbox_dir", "log", "fifo"}
    assert metric("orlop_shim_delete_lies_total") > lies
    assert_released(kubelet, pod)
    rig.assert_clean()


def test_start_tells_the_address_of_another_pods_shim(rig: Rig, failshims: Shims) -> None:
    """It is not taken for the new pod's, or that one's end would be the other's."""
    kubelet, failshim = rig.kubelet, failshims["garbage"]
    bystander = shim_of(rig.pod)
    failshim.prints((rig.daemon.state / PLUGIN / "k8s.io" / rig.pod.id / "bootstrap.json").read_bytes())
    with failshim.faults("start garbage"), refused(grpc.StatusCode.UNAVAILABLE, rig.pod.id, "another pod"):
        kubelet.run_pod(handler="garbage")
    assert shim_of(rig.pod).pid == bystander.pid
    rig.assert_clean()


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"{",
        b'{"version": 99, "address": "unix:///run/containerd/s/x", "protocol": "ttrpc"}',
        b'{"version": 3, "address": "unix:///run/containerd/s/x", "protocol": "smoke"}',
        b'{"version": 3, "address": ["unix:///x"], "protocol": "ttrpc"}',
        b"unix:///run/x\nunix:///run/y",
        b"/" * 100_000,
    ],
    ids=["nothing", "half", "version", "protocol", "type", "two", "long"],
)
def test_start_tells_something_hostile(rig: Rig, failshims: Shims, hostile: bytes) -> None:
    kubelet, failshim = rig.kubelet, failshims["garbage"]
    failshim.prints(hostile)
    with failshim.faults("start garbage"), pytest.raises(grpc.RpcError) as failure:
        kubelet.run_pod(handler="garbage")
    assert len(failure.value.details() or "") < 1000
    assert "shim" in (failure.value.details() or "")
    rig.assert_clean()
