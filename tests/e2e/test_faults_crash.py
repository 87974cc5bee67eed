"""`kill -9` of the daemon in the middle of each verb: at every failpoint that the verb passes, one after the other.

A story is a verb as a generator: it prepares, yields the call under which the daemon dies, and then, with the next daemon, does what the
kubelet does (asks, repeats, removes, begins anew), until all that it made is gone. A failpoint is where the agent is about to touch the
world outside. Which ones a verb passes is noted when nothing is amiss.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, Pod, until
from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig
from tests.e2e.node import shims

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

IMAGE_VOLUME = cri.Mount(container_path="/vol", image=cri.ImageSpec(image=BUSYBOX), readonly=True, image_sub_path="etc")

Story = Callable[[Rig], Iterator[Callable[[], object]]]


def works(kubelet: Client, pod: Pod) -> None:
    """Containers come and go in the pod, and commands run in them."""
    container = kubelet.run_container(pod)
    assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"
    kubelet.stop(container)
    kubelet.remove(container)


def remove_pod(kubelet: Client, pod: Pod | str) -> None:
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)


def remove_all_named(kubelet: Client, name: str) -> None:
    for pod in kubelet.pods():
        if pod.metadata.name == name:
            remove_pod(kubelet, pod.id)


def released(kubelet: Client, container: str) -> None:
    """Waits until nothing of an exited container is left but its writable layer."""
    until(
        lambda: [entry.kind for entry in kubelet.ledger() if entry.container == container] == ["snapshot"],
        what=f"container {container} has only its snapshot left",
    )


def shim_in_ledger(kubelet: Client, pod: Pod) -> int:
    """The pid of the pod's shim; 0 as long as it isn't held."""
    [entry] = [entry for entry in kubelet.ledger() if (entry.kind, entry.key) == ("shim", pod.id)]
    return int(json.loads(entry.data).get("pid", 0))


def run_pod_sandbox(rig: Rig, namespaces: cri.NamespaceOption | None = None) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    config = kubelet.pod_config(namespaces=namespaces)
    config.linux.cgroup_parent = ""  # so that there is a cgroup to make as well
    yield lambda: kubelet.run_again(config)
    remove_all_named(kubelet, config.metadata.name)
    rig.assert_clean()
    pod = kubelet.run_again(config)
    works(kubelet, pod)
    remove_pod(kubelet, pod)


def run_pod_sandbox_with_task(rig: Rig) -> Iterator[Callable[[], object]]:
    yield from run_pod_sandbox(rig, cri.NamespaceOption(network=cri.POD, pid=cri.POD, ipc=cri.POD))


def create_container(rig: Rig) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    yield lambda: kubelet.create_container(rig.pod, name="app", mounts=[IMAGE_VOLUME])
    for container in kubelet.containers():
        if container.metadata.name == "app":
            kubelet.remove(container.id)
    again = kubelet.run_container(rig.pod, name="app")
    kubelet.remove(again)


def start_container(rig: Rig) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    container = kubelet.create_container(rig.pod, name="app", mounts=[IMAGE_VOLUME])
    yield lambda: kubelet.start(container)
    rig.daemon.wait_recovered()
    status = kubelet.status(container)
    assert status.state in (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING, cri.CONTAINER_EXITED), status
    if status.state == cri.CONTAINER_EXITED:  # the second, if a recovery killed it and was cut off as well
        assert (status.exit_code, status.reason) in [(128, "StartError"), (137, "Error")], status
    kubelet.stop(container)
    kubelet.remove(container)
    again = kubelet.run_container(rig.pod, name="app", attempt=1)
    assert kubelet.exec_sync(again, "echo", "on").stdout == b"on\n"
    kubelet.remove(again)


def exec_sync(rig: Rig) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    container = kubelet.run_container(rig.pod)
    yield lambda: kubelet.exec_sync(container, "echo", "on")
    assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"
    assert kubelet.status(container).state == cri.CONTAINER_RUNNING
    kubelet.remove(container)


def stop_container(rig: Rig) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    container = kubelet.run_container(rig.pod, ["sh", "-c", "trap 'exit 3' TERM; touch /ready; sleep 1000000 & wait"])
    until(lambda: not kubelet.exec_sync(container, "test", "-e", "/ready").exit_code, what="the container heeds SIGTERM")

    def stop() -> None:
        kubelet.stop(container, grace=30)
        released(kubelet, container)

    yield stop
    stop()
    status = kubelet.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 3, "Error"), status
    kubelet.remove(container)


def remove_container(rig: Rig) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    container = kubelet.run_container(rig.pod, ["true"])
    kubelet.wait_exit(container)
    released(kubelet, container)
    yield lambda: kubelet.remove(container)
    kubelet.remove(container)
    assert container not in [other.id for other in kubelet.containers()]


def stop_pod_sandbox(rig: Rig, namespaces: cri.NamespaceOption | None = None) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    config = kubelet.pod_config(namespaces=namespaces)
    config.linux.cgroup_parent = ""
    pod = kubelet.run_again(config)
    running, created = kubelet.run_container(pod), kubelet.create_container(pod)
    yield lambda: kubelet.stop_pod(pod)
    kubelet.stop_pod(pod)
    status = kubelet.pod_status(pod)
    assert (status.state, status.network.ip) == (cri.SANDBOX_NOTREADY, "")
    assert kubelet.status(running).exit_code == 137
    assert kubelet.status(created).state == cri.CONTAINER_CREATED
    kubelet.remove_pod(pod)


def stop_pod_sandbox_with_task(rig: Rig) -> Iterator[Callable[[], object]]:
    yield from stop_pod_sandbox(rig, cri.NamespaceOption(network=cri.POD, pid=cri.POD, ipc=cri.POD))


def remove_pod_sandbox(rig: Rig) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    kubelet.run_container(pod)
    kubelet.stop_pod(pod)
    yield lambda: kubelet.remove_pod(pod)
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)
    assert pod.id not in [other.id for other in kubelet.pods()]


def cleanup_after_a_dead_shim(rig: Rig) -> Iterator[Callable[[], object]]:
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    containers = [kubelet.run_container(pod), kubelet.run_container(pod)]
    [shim] = shims(pod.id)

    def kill() -> None:
        os.kill(shim.pid, signal.SIGKILL)
        for container in containers:
            kubelet.wait_exit(container)
            released(kubelet, container)
        until(lambda: shim_in_ledger(kubelet, pod) not in (0, shim.pid), what="there is a new shim")

    yield kill
    for container in containers:
        status = kubelet.wait_exit(container)
        assert (status.exit_code, status.reason) == (255, "Unknown")
    assert kubelet.pod_status(pod).state == cri.SANDBOX_READY
    works(kubelet, pod)
    remove_pod(kubelet, pod)


ANYWHERE = "*=1000000*crash"  # never; but what is passed is noted
FIRST, LAST, FIRST_AND_LAST = (0,), (-1,), (0, -1)
REDIAL = {"runtime.shim.connect", "ttrpc.connect.dial"}
"""Passed or not when a shim ends: its connection may be closed a moment before its process is gone."""


@one_pair
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("story", "occurrences"),
    [
        (run_pod_sandbox, FIRST_AND_LAST),
        (run_pod_sandbox_with_task, LAST),
        (create_container, FIRST_AND_LAST),
        (start_container, FIRST_AND_LAST),
        (exec_sync, FIRST_AND_LAST),
        (stop_container, FIRST_AND_LAST),
        (remove_container, FIRST_AND_LAST),
        (stop_pod_sandbox, FIRST_AND_LAST),
        (stop_pod_sandbox_with_task, LAST),
        (remove_pod_sandbox, FIRST_AND_LAST),
        (cleanup_after_a_dead_shim, FIRST),
    ],
    ids=lambda value: getattr(value, "__name__", ""),  # of the story
)
def test_a_crash_at_every_failpoint(rig: Rig, story: Story, occurrences: Sequence[int]) -> None:
    acts = story(rig)
    verb = next(acts)
    rig.daemon.failpoints(ANYWHERE)
    verb()
    passed = rig.daemon.failpoints("")
    assert list(acts) == []
    assert passed
    for point, times in Counter(passed).items():
        if point in REDIAL and story in (stop_pod_sandbox, stop_pod_sandbox_with_task):
            continue
        for nth in dict.fromkeys(range(1, times + 1)[place] for place in occurrences):
            acts = story(rig)
            crash(rig, acts, f"{point}={nth}*crash")
            rig.daemon.start()
            assert list(acts) == []
            rig.assert_clean()


def crash(rig: Rig, acts: Iterator[Callable[[], object]], failpoint: str) -> None:
    """Tells a story until its verb has met its fate."""
    verb = next(acts)
    rig.daemon.failpoints(failpoint)
    assert rig.dies(verb) == failpoint.partition("=")[0]


@pytest.mark.parametrize(
    ("story", "point"),
    [
        (run_pod_sandbox, "runtime.shim.connect"),
        (create_container, "store.put.commit"),
        (start_container, "runtime.task.hold"),
        (exec_sync, "runtime.exec.start"),
        (stop_container, "cleanup.task_delete"),
        (remove_container, "snapshots.remove.rmtree"),
        (stop_pod_sandbox, "cleanup.shutdown"),
        (remove_pod_sandbox, "store.delete.commit"),
        (cleanup_after_a_dead_shim, "cleanup.verify"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_crash_in_the_middle(rig: Rig, story: Story, point: str) -> None:
    acts = story(rig)
    crash(rig, acts, f"{point}=crash")
    rig.daemon.start()
    assert list(acts) == []


@one_pair
@pytest.mark.parametrize(
    ("story", "point"),
    [
        (run_pod_sandbox_with_task, "runtime.task.hold"),
        (start_container, "runtime.task.hold"),
        (stop_pod_sandbox, "cleanup.bundle"),
        (cleanup_after_a_dead_shim, "cleanup.shim_delete"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_crashes_while_recovering(rig: Rig, story: Story, point: str) -> None:
    """Each daemon gets a little further than the one before."""
    acts = story(rig)
    crash(rig, acts, f"{point}=crash")
    crashes = 0
    while rig.starts(f"*={1 + 3 * crashes}*crash"):
        crashes += 1
    assert crashes > 1
    assert list(acts) == []
