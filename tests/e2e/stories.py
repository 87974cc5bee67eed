"""Verbs as stories, for tests that do the daemon harm in the middle of one: `test_faults_crash.py`, and the crash matrix.

A story is a generator: it prepares, yields the call under which something goes wrong, and then does what the kubelet does (asks, repeats,
removes, begins anew), be it with the next daemon, until all that it made is gone.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator

from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, Pod, until
from tests.e2e.faults import Rig
from tests.e2e.node import shims

ANYWHERE = "*=1000000*crash"  # never; but what is passed is noted
IMAGE_VOLUME = cri.Mount(container_path="/vol", image=cri.ImageSpec(image=BUSYBOX), readonly=True, image_sub_path="etc")

Acts = Iterator[Callable[[], object]]
Story = Callable[[Rig], Acts]


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


def run_pod_sandbox(rig: Rig, namespaces: cri.NamespaceOption | None = None) -> Acts:
    kubelet = rig.kubelet
    config = kubelet.pod_config(namespaces=namespaces)
    config.linux.cgroup_parent = ""  # so that there is a cgroup to make as well
    yield lambda: kubelet.run_again(config)
    remove_all_named(kubelet, config.metadata.name)
    rig.assert_clean()
    pod = kubelet.run_again(config)
    works(kubelet, pod)
    remove_pod(kubelet, pod)


def run_pod_sandbox_with_task(rig: Rig) -> Acts:
    yield from run_pod_sandbox(rig, cri.NamespaceOption(network=cri.POD, pid=cri.POD, ipc=cri.POD))


def create_container(rig: Rig) -> Acts:
    kubelet = rig.kubelet
    yield lambda: kubelet.create_container(rig.pod, name="app", mounts=[IMAGE_VOLUME])
    for container in kubelet.containers():
        if container.metadata.name == "app":
            kubelet.remove(container.id)
    again = kubelet.run_container(rig.pod, name="app")
    kubelet.remove(again)


def start_container(rig: Rig) -> Acts:
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


def exec_sync(rig: Rig) -> Acts:
    kubelet = rig.kubelet
    container = kubelet.run_container(rig.pod)
    yield lambda: kubelet.exec_sync(container, "echo", "on")
    assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"
    assert kubelet.status(container).state == cri.CONTAINER_RUNNING
    kubelet.remove(container)


def stop_container(rig: Rig) -> Acts:
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


def remove_container(rig: Rig) -> Acts:
    kubelet = rig.kubelet
    container = kubelet.run_container(rig.pod, ["true"])
    kubelet.wait_exit(container)
    released(kubelet, container)
    yield lambda: kubelet.remove(container)
    kubelet.remove(container)
    assert container not in [other.id for other in kubelet.containers()]


def stop_pod_sandbox(rig: Rig, namespaces: cri.NamespaceOption | None = None) -> Acts:
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


def stop_pod_sandbox_with_task(rig: Rig) -> Acts:
    yield from stop_pod_sandbox(rig, cri.NamespaceOption(network=cri.POD, pid=cri.POD, ipc=cri.POD))


def remove_pod_sandbox(rig: Rig) -> Acts:
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    kubelet.run_container(pod)
    kubelet.stop_pod(pod)
    yield lambda: kubelet.remove_pod(pod)
    kubelet.stop_pod(pod)
    kubelet.remove_pod(pod)
    assert pod.id not in [other.id for other in kubelet.pods()]


def cleanup_after_a_dead_shim(rig: Rig) -> Acts:
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


def pull_image(rig: Rig) -> Acts:
    kubelet, name = rig.kubelet, rig.image
    yield lambda: kubelet.pull_image(name)
    ref = kubelet.pull_image(name)
    assert kubelet.image_id(name) == ref
    kubelet.remove_image(name)


def remove_image(rig: Rig) -> Acts:
    kubelet, name = rig.kubelet, rig.image
    kubelet.pull_image(name)
    yield lambda: kubelet.remove_image(name)
    kubelet.remove_image(name)
    assert kubelet.image_id(name) == ""


STORIES: dict[str, tuple[Story, ...]] = {
    "RunPodSandbox": (run_pod_sandbox, run_pod_sandbox_with_task),
    "CreateContainer": (create_container,),
    "StartContainer": (start_container,),
    "ExecSync": (exec_sync,),
    "StopContainer": (stop_container,),
    "RemoveContainer": (remove_container,),
    "StopPodSandbox": (stop_pod_sandbox, stop_pod_sandbox_with_task),
    "RemovePodSandbox": (remove_pod_sandbox,),
    "PullImage": (pull_image,),
    "RemoveImage": (remove_image,),
    "a shim dies": (cleanup_after_a_dead_shim,),
}
"""By what the kubelet calls; the last is what the agent does by itself."""


def crash(rig: Rig, acts: Acts, failpoint: str) -> None:
    """Tells a story until the daemon has died in its verb, at a failpoint in the language of `agent.failpoints`."""
    verb = next(acts)
    rig.daemon.failpoints(failpoint)
    assert rig.dies(verb) == failpoint.partition("=")[0]
