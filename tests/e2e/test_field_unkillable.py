"""Faults that users of other runtimes reported (the rows of tests/README.md): what is frozen, in state D, or takes longer than we wait."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Pod, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.dead_fs import dead_file_system
from tests.e2e.faults import Gate, Rig, init_of
from tests.e2e.node import CGROUPS, container_cgroup, processes, shims
from tests.e2e.races import code_of_call, owned, running

pytestmark = [pytest.mark.e2e, one_pair]

# Instead of ten and thirty seconds, and of minutes between two attempts.
TIMEOUTS = (
    "TASK_DELETE=1.5;TASK_KILL=1;EXIT_AFTER_KILL=1;EXIT_AFTER_CGROUP_KILL=1;EXIT_AFTER_SHIM_KILL=1;SHIM_DELETE=2;ENGINE=2;RELEASE_RETRY=1"
)
CODE = grpc.StatusCode


# ---- 4: a delete that takes longer than anybody waits


@pytest.mark.field_fault("4")
def test_a_delete_that_ends_after_its_caller_has_given_up(rig: Rig) -> None:
    """The shim does it all the same, and says next time that there is nothing to delete. That ends nothing else before its time."""
    kubelet = rig.kubelet
    home = rig.daemon.state.parent / "slow-engine"
    gate = Gate(home, rig.daemon.pair.engine_path, 'case " $* " in *" delete "*) true ;; *) false ;; esac')
    drop_in = rig.daemon.config.parent / "conf.d" / "slow.toml"
    drop_in.write_text(f'[runtimes.slow]\npath = "{rig.daemon.pair.shim_path}"\nengine = "{gate.path}"\n')
    rig.daemon.restart()
    try:
        pod = kubelet.run_pod(handler="slow")
        container = kubelet.run_container(pod)
        begin = rig.daemon.log.stat().st_size
        with gate.replaced('sleep 4; exec "$PROGRAM" "$@"'):
            kubelet.stop(container)
            assert kubelet.status(container).exit_code == 137
            until(lambda: task_error(rig, container), what="the delete was given up")
            assert "took longer than 1.5 s" in task_error(rig, container)
            until(lambda: owned(kubelet, container) == ["snapshot"], what="only its snapshot is left", within=60)
        assert kubelet.exec_sync(kubelet.run_container(pod), "echo", "on").stdout == b"on\n"
        kubelet.stop_pod(pod)
        assert shims(pod.id) == []
        steps = [step for step, subject in rig.steps(begin) if subject == container]
        assert steps.count("bundle") == 1
        assert steps.index("bundle") > max(place for place, step in enumerate(steps) if step == "task_delete")
        kubelet.remove_pod(pod)
    finally:
        drop_in.unlink()
        for path in (*home.iterdir(), home):
            path.rmdir() if path.is_dir() else path.unlink()


def task_error(rig: Rig, container: str) -> str:
    """What the ledger says of the last attempt to release a container's task."""
    return next((entry.error for entry in rig.kubelet.ledger() if (entry.kind, entry.key) == ("task", container)), "")


# ---- 13: frozen


def freezer(cgroup: str) -> tuple[Path, str, str]:
    """The file that freezes a cgroup, and what is written there to freeze and to thaw it."""
    if (CGROUPS / "freezer").is_dir():
        return CGROUPS / "freezer" / cgroup.lstrip("/") / "freezer.state", "FROZEN", "THAWED"
    return CGROUPS / cgroup.lstrip("/") / "cgroup.freeze", "1", "0"


@contextmanager
def frozen(cgroup: str) -> Iterator[None]:
    file, freeze, thaw = freezer(cgroup)
    file.write_text(freeze)
    try:
        yield
    finally:
        if file.exists():
            file.write_text(thaw)


@pytest.mark.field_fault("13")
def test_a_container_that_somebody_froze(rig: Rig) -> None:
    """SIGKILL reaches it when it is thawed, which is done. Its neighbour in the pod lives on."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container, neighbour = kubelet.run_container(pod), kubelet.run_container(pod)
    with frozen(container_cgroup(pod.config.linux.cgroup_parent, container)):
        kubelet.stop(container)
        assert kubelet.status(container).exit_code == 137
        until(lambda: owned(kubelet, container) == ["snapshot"], what="only its snapshot is left")
    assert kubelet.exec_sync(neighbour, "echo", "on").stdout == b"on\n"


@pytest.mark.field_fault("12", "13")
def test_an_init_that_waits_to_be_started_and_was_frozen(rig: Rig) -> None:
    """Its engine made it and could not say so, and the daemon is gone: as `runc init` that nobody knows, which SIGKILL doesn't end."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod(handler="gated")
    container = kubelet.create_container(pod)
    cgroup = container_cgroup(pod.config.linux.cgroup_parent, container)
    with rig.gates.engine.shut("after"), ThreadPoolExecutor(1) as pool:
        starting = pool.submit(kubelet.start, container)
        until(rig.gates.engine.reached, what="the engine has made it")
        with frozen(cgroup):
            rig.daemon.kill9()
            assert code_of_call(starting.result) is CODE.UNAVAILABLE
            rig.daemon.start()
            assert kubelet.wait_exit(container).reason == "StartError"
            until(lambda: owned(kubelet, container) == ["snapshot"], what="only its snapshot is left", within=60)
    assert not freezer(cgroup)[0].exists()
    kubelet.remove_pod(pod)
    rig.assert_clean()


@pytest.mark.field_fault("13", "23")
def test_a_pods_cgroup_that_somebody_froze(rig: Rig) -> None:
    """It is not the agent's to thaw, and nothing in it can end. That is said, the pod stays known, and goes once it is thawed."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    [(init, _)] = init_of(container)
    with frozen(pod.config.linux.cgroup_parent):
        with refused(CODE.DEADLINE_EXCEEDED, container, f"process {init} (", "frozen"):
            kubelet.stop(container)
        assert kubelet.status(container).state == cri.CONTAINER_RUNNING
        assert_others_work(rig)
        assert init_of(container)[0][0] == init
    until(lambda: code_of_call(lambda: kubelet.remove_pod(pod)) is CODE.OK, what="the pod goes", within=60)
    rig.assert_clean()


# ---- 23: state D


def assert_others_work(rig: Rig) -> None:
    kubelet = rig.kubelet
    other = kubelet.run_pod()
    kubelet.stop(kubelet.run_container(other))
    kubelet.remove_pod(other)
    assert kubelet.exec_sync(rig.counter, "echo", "on").stdout == b"on\n"


def in_state_d(pid: int) -> bool:
    return pid in [process.pid for process in processes() if process.state == "D"]


@contextmanager
def stuck_container(rig: Rig, pod: Pod, volume: Path) -> Iterator[str]:
    """One whose init waits in a file system that doesn't answer, until the end of the block."""
    kubelet = rig.kubelet
    with dead_file_system(volume) as nfs:
        command = ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done; exec stat /data"]
        container = kubelet.run_container(pod, command, mounts=[cri.Mount(container_path="/data", host_path=str(volume))])
        nfs.dies()
        kubelet.exec_sync(container, "touch", "/tmp/go")
        until(nfs.is_waited_for, what="it waits for an answer")
        yield container
        nfs.goes_away()


@pytest.mark.field_fault("20", "23")
def test_a_container_in_state_d(rig: Rig, tmp_path: Path) -> None:
    """Each call ends in its time with what is stuck; the pod stays known; all others work, and it goes when the file system does."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    with stuck_container(rig, pod, tmp_path / "nfs") as container:
        [(init, _)] = init_of(container)
        with refused(CODE.DEADLINE_EXCEEDED, container, f"process {init} (", "state D in "):
            kubelet.stop(container)
        until(partial(in_state_d, init), what="SIGKILL has not ended it")
        for call in (kubelet.stop_pod, kubelet.remove_pod):
            assert code_of_call(partial(call, pod)) in (CODE.DEADLINE_EXCEEDED, CODE.FAILED_PRECONDITION)
        assert kubelet.status(container).state == cri.CONTAINER_RUNNING
        assert_others_work(rig)
        rig.daemon.kill9()
        rig.daemon.start()
        assert kubelet.status(container).state == cri.CONTAINER_RUNNING
        assert_others_work(rig)
        said = rig.daemon.orlop("explain", container).stdout
        assert str(init) in said
    until(lambda: code_of_call(lambda: kubelet.remove_pod(pod)) is CODE.OK, what="the pod goes", within=60)
    assert not Path(f"/proc/{init}").exists()
    rig.assert_clean()


@pytest.mark.field_fault("23")
def test_a_process_in_state_d_beside_the_init(rig: Rig, tmp_path: Path) -> None:
    """In the host's PID namespace the init ends without it, and the exit is told. Who is still in the cgroup is named."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod(namespaces=cri.NamespaceOption(network=cri.POD, pid=cri.NODE, ipc=cri.POD))
    with dead_file_system(tmp_path / "nfs") as nfs:
        command = ["sh", "-c", "(until [ -e /tmp/go ]; do sleep 0.05; done; exec stat /data) & exec sleep 770006"]
        container = kubelet.run_container(pod, command, mounts=[cri.Mount(container_path="/data", host_path=str(nfs.path))])
        nfs.dies()
        kubelet.exec_sync(container, "touch", "/tmp/go")
        until(nfs.is_waited_for, what="it waits for an answer")
        members = freezer(container_cgroup(pod.config.linux.cgroup_parent, container))[0].with_name("cgroup.procs").read_text()
        [stuck] = set(map(int, members.split())) - {running("sleep", "770006")[0]}
        with refused(CODE.FAILED_PRECONDITION, container, f"process {stuck} (", "state D in "):
            kubelet.stop_pod(pod)
        assert kubelet.status(container).exit_code == 137
        assert in_state_d(stuck)
        assert_others_work(rig)
        nfs.goes_away()
    until(lambda: code_of_call(lambda: kubelet.remove_pod(pod)) is CODE.OK, what="the pod goes", within=60)
    rig.assert_clean()
