"""A daemon that starts on what another left, and isn't let down by it: each of these once lost a process, a pod or the others' time."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from cri.api import admin_pb2 as admin
from cri.api import api_pb2 as cri
from tests.e2e.client import Client, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import CNI_PLUGINS, PAUSE, Daemon
from tests.e2e.dead_fs import dead_file_system
from tests.e2e.node import shims
from tests.e2e.races import code_of, mute, owned, running
from tests.images import Node, busybox_image, make_oci_layout

pytestmark = [pytest.mark.e2e, one_pair]

WITH_TASK = cri.NamespaceOption(network=cri.POD, pid=cri.POD, ipc=cri.POD)


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def remove_image(kubelet: Client, name: str) -> None:
    kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))


# ---- nothing is released before it is known what there is


@pytest.mark.parametrize("point", ["store.release.act", "cleanup.task_delete", "cleanup.shutdown"])
def test_a_release_that_a_crash_cut_off_is_done_and_not_only_struck_off(daemon: Daemon, beside: ThreadPoolExecutor, point: str) -> None:
    """Due releases were tried before the shims were loaded: no such task, so there was nothing to do. The fixture finds what is left."""
    kubelet = daemon.client
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod, ["sleep", "777777"])
    daemon.failpoints(f"{point}=crash")
    stopping = beside.submit(kubelet.stop_pod, pod)
    daemon.wait_gone()
    assert code_of(stopping) is grpc.StatusCode.UNAVAILABLE
    daemon.start()
    kubelet.stop_pod(pod)
    assert shims(pod.id) == []
    assert kubelet.status(container).exit_code == 137
    assert owned(kubelet, pod.id) == ["sandbox_dir", "snapshot"]
    kubelet.remove_pod(pod)
    assert owned(kubelet, pod.id, container) == []


@pytest.mark.parametrize("daemon", ["SHIM_LOAD=2"], indirect=True)
def test_an_import_waits_for_the_end_of_recovery(daemon: Daemon, beside: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Recovery releases blobs and layers that nobody is making any more, and an import's were among them."""
    layers = [{"etc/x": Node(data=os.urandom(1 << 16))}]
    archive = make_oci_layout(tmp_path / "other.tar", {"orlop.test/other:latest": layers}, {})
    pod = daemon.client.run_pod()
    daemon.kill9()
    with mute(pod):
        daemon.start(failpoints="snapshots.commit.rename=delay(5)")
        importing = beside.submit(daemon.client.admin.ImportImage, admin.ImportImageRequest(path=str(archive)))
        daemon.wait_recovered()
        assert code_of(importing) is grpc.StatusCode.OK
    daemon.failpoints("")
    remove_image(daemon.client, "orlop.test/other:latest")


# ---- one bad thing is one bad thing


def test_a_pipe_that_is_none_any_more_does_not_end_recovery(daemon: Daemon) -> None:
    """Recovery broke off, verbs were let in all the same, and took a running container for one that has no task."""
    kubelet = daemon.client
    pods = [kubelet.run_pod() for _ in range(3)]
    containers = [kubelet.run_container(pod, ["sleep", f"77777{number}"]) for number, pod in enumerate(pods)]
    daemon.kill9()
    for broken in containers[:2]:  # whichever is looked at first
        pipe = daemon.state / "io" / broken / "stdout"
        pipe.unlink()
        pipe.write_text("not a pipe")
    daemon.start()
    daemon.wait_recovered()
    for container in containers:
        assert kubelet.status(container).state == cri.CONTAINER_RUNNING
        assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"
    for number, pod in enumerate(pods):
        kubelet.remove_pod(pod)
        assert running("sleep", f"77777{number}") == []


@pytest.mark.parametrize("daemon", ["SHIM_LOAD=60"], indirect=True)
def test_each_bad_thing_holds_up_its_own_pod_only(daemon: Daemon, beside: ThreadPoolExecutor) -> None:
    """Shims that don't answer, a record and a ledger row that can't be read, and a bundle on a dead mount: others don't notice.

    Every verb waited for the slowest shim of the node.
    """
    kubelet = daemon.client
    pods = {name: kubelet.run_pod(name) for name in ("sound", "other", "mute", "silent", "torn", "strange", "dead")}
    containers = {name: kubelet.run_container(pod) for name, pod in pods.items()}
    daemon.kill9()
    begin = daemon.log.stat().st_size
    with closing(sqlite3.connect(daemon.state / "boot.db", isolation_level=None)) as store:
        for change, key in (
            ("UPDATE records SET crc = crc + 1 WHERE bucket = 'containers' AND key = ?", containers["torn"]),
            ("UPDATE resources SET kind = 'wormhole' WHERE kind = 'fifo' AND key = ?", containers["strange"]),
        ):
            assert store.execute(change, (key,)).rowcount == 1
    [bundle] = daemon.state.glob(f"io.containerd.runtime.v2.task/k8s.io/{pods['dead'].id}")
    with mute(pods["mute"]), mute(pods["silent"]), dead_file_system(bundle) as gone:
        gone.dies()
        daemon.start()
        assert {pod.id for pod in kubelet.pods()} == {pod.id for pod in pods.values()}
        assert {each.id for each in kubelet.containers()} == set(containers.values()) - {containers["torn"]}
        for name, pod in pods.items():
            assert kubelet.pod_status(pod).state == cri.SANDBOX_READY
            if name != "torn":
                assert kubelet.status(containers[name]).state == cri.CONTAINER_RUNNING
        held = [beside.submit(kubelet.stop_pod, pods[name]) for name in ("mute", "dead")]
        until(gone.is_waited_for, what="the dead mount is looked into")
        for name in ("sound", "other", "strange"):
            assert kubelet.exec_sync(containers[name], "echo", "on").stdout == b"on\n"
        for pod in (pods["torn"], pods["sound"], kubelet.run_pod()):
            assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"
            kubelet.stop_pod(pod)
            kubelet.remove_pod(pod)
        assert b"recovered " not in daemon.log.read_bytes()[begin:], "all this while the others are waited for"
        assert not any(each.done() for each in held)
        gone.goes_away()
    for each in held:
        each.result(60)
    assert kubelet.exec_sync(containers["silent"], "echo", "on").stdout == b"on\n"
    kubelet.remove_all()
    [left] = json.loads(daemon.orlop("--output", "json", "audit", check=False).stdout)
    assert (left["kind"], left["state"]) == ("fifo", "leaked"), "what the row was for that nobody understands"
    daemon.orlop("reap")


def test_a_daemon_that_can_not_know_its_tasks_ends(daemon: Daemon) -> None:
    """It would take all of them for gone."""
    kubelet = daemon.client
    container = kubelet.run_container(kubelet.run_pod())
    daemon.kill9()
    [bundles] = daemon.state.glob("io.containerd.runtime.v2.task/k8s.io")
    aside = bundles.with_name("aside")
    bundles.rename(aside)
    bundles.write_text("no directory")
    daemon.start(wait=False)
    assert daemon.wait_gone() == 1
    assert "Not a directory" in daemon.log_tail(30)
    bundles.unlink()
    aside.rename(bundles)
    daemon.start()
    assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"


@pytest.mark.field_fault("0b", "18")
def test_a_plugin_that_hangs_holds_up_its_own_pod_only(daemon: Daemon, beside: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Its DEL was part of recovery, and for two minutes no pod of the node could be touched."""
    kubelet, blocked = daemon.client, tmp_path / "blocked"
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    script = f'#!/bin/sh\n[ $CNI_COMMAND = DEL ] && while [ "$CNI_CONTAINERID" = "$(cat {blocked})" ]; do sleep 0.1; done\n'
    (plugins / "slow").write_text(f"{script}exec {CNI_PLUGINS}/bridge\n")
    (plugins / "slow").chmod(0o755)
    blocked.touch()
    daemon.stop()
    daemon.config.write_text(daemon.config.read_text().replace("bin_dirs = [", f'bin_dirs = ["{plugins}", '))
    [conf] = daemon.cni.iterdir()
    network = json.loads(conf.read_text())
    network["plugins"][0]["type"] = "slow"
    conf.write_text(json.dumps(network))
    daemon.start()
    slow, other = kubelet.run_pod(), kubelet.run_pod()
    container = kubelet.run_container(other)
    daemon.failpoints("network.delete.cache=crash")
    stopping = beside.submit(kubelet.stop_pod, slow)
    daemon.wait_gone()
    assert code_of(stopping) is grpc.StatusCode.UNAVAILABLE
    blocked.write_text(slow.id)
    begin = time.monotonic()
    daemon.start()
    assert kubelet.exec_sync(container, "echo", "on").stdout == b"on\n"
    kubelet.remove_pod(other)
    kubelet.remove_pod(kubelet.run_pod())
    assert time.monotonic() - begin < 15
    assert "cni" in owned(kubelet, slow.id)
    blocked.write_text("")
    kubelet.remove_pod(slow)


# ---- a start that a crash cut off


@pytest.mark.parametrize("daemon", ["SHIM_LOAD=1;TASK_KILL=1;EXIT_AFTER_KILL=1"], indirect=True)
def test_a_container_that_was_being_started_is_exited_when_its_process_has_ended(daemon: Daemon, beside: ThreadPoolExecutor) -> None:
    """With a shim that didn't answer it was EXITED while it ran on, and the kubelet started a second one beside it."""
    kubelet = daemon.client
    bystander = kubelet.run_container(kubelet.run_pod())
    pod = kubelet.run_pod()
    container = kubelet.create_container(pod, ["sleep", "777777"])
    daemon.failpoints("pods.container_start.record=crash")
    starting = beside.submit(kubelet.start, container)
    daemon.wait_gone()
    assert code_of(starting) is grpc.StatusCode.UNAVAILABLE
    with mute(pod):
        daemon.start()
        assert kubelet.exec_sync(bystander, "echo", "on").stdout == b"on\n"
        time.sleep(5)  # for several tries to kill it
        assert running("sleep", "777777")
        assert kubelet.status(container).state != cri.CONTAINER_EXITED
    status = kubelet.wait_exit(container)
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert not running("sleep", "777777")
    until(lambda: owned(kubelet, container) == ["snapshot"], what="only its snapshot is left")


@pytest.mark.parametrize("daemon", ["SHIM_LOAD=1;TASK_KILL=1;EXIT_AFTER_KILL=1;IN_FLIGHT=2"], indirect=True)
def test_such_a_container_can_be_stopped_though_its_shim_does_not_answer(daemon: Daemon, beside: ThreadPoolExecutor) -> None:
    kubelet = daemon.client
    pod = kubelet.run_pod()
    container = kubelet.create_container(pod, ["sleep", "777777"])
    daemon.failpoints("pods.container_start.record=crash")
    starting = beside.submit(kubelet.start, container)
    daemon.wait_gone()
    assert code_of(starting) is grpc.StatusCode.UNAVAILABLE
    with mute(pod):
        daemon.start()
        kubelet.stop(container)
        assert not running("sleep", "777777")
        assert kubelet.status(container).reason == "StartError"


# ---- a sandbox that is a task lives as long as the task


def test_a_pause_that_ended_while_the_record_could_not_be_written(daemon: Daemon, pause: Path) -> None:
    """The ledger said after the restart that there is no task, the record that the sandbox is ready."""
    kubelet = daemon.client
    daemon.orlop("image", "import", pause)
    pod = kubelet.run_pod(namespaces=WITH_TASK)
    daemon.failpoints("store.put.commit=hang")
    [shim] = shims(pod.id)
    os.kill(shim.pid, signal.SIGKILL)
    until(lambda: "task" not in owned(kubelet, pod.id), what="the task is cleaned up")
    assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
    daemon.kill9()
    daemon.start()
    daemon.wait_recovered()
    assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        kubelet.create_container(pod)
    kubelet.remove_pod(pod)
    remove_image(kubelet, PAUSE)


@pytest.mark.field_fault("S4")
def test_a_pause_that_ends_before_the_sandbox_has_its_record(daemon: Daemon, tmp_path: Path) -> None:
    """Its exit was nobody's, and the sandbox ready without a process."""
    kubelet = daemon.client
    daemon.orlop("image", "import", busybox_image(tmp_path / "short.tar", PAUSE, {"Entrypoint": ["/bin/true"], "Cmd": []}))
    daemon.failpoints("pods.sandbox_run.record=delay(1.5)")
    pod = kubelet.run_pod(namespaces=WITH_TASK)
    assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        kubelet.create_container(pod)
    kubelet.remove_pod(pod)
    remove_image(kubelet, PAUSE)
