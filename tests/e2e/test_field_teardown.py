"""Faults that users of other runtimes reported (the rows of tests/README.md): what others hold, copy, leave or fail to give back."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.faults import Rig, init_of, shim_of
from tests.e2e.node import CGROUPS, cgroups, container_cgroup, processes, shims
from tests.e2e.races import code_of_call, owned, running

pytestmark = [pytest.mark.e2e, one_pair]

TIMEOUTS = "RELEASE_RETRY=1;LOG_DRAIN=1"
CODE = grpc.StatusCode
HOST_PIDS = cri.NamespaceOption(network=cri.POD, pid=cri.NODE, ipc=cri.POD)


@contextmanager
def stranger(*command: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host, which nobody but the test ends."""
    with subprocess.Popen(command, cwd=cwd) as process:
        try:
            yield process
        finally:
            process.kill()


def bundle(rig: Rig, container: str) -> Path:
    return rig.daemon.state / "io.containerd.runtime.v2.task/k8s.io" / container


def failures(rig: Rig, *keys: str) -> dict[str, str]:
    """What the ledger says of releases that failed: key to error."""
    return {entry.key: entry.error for entry in rig.kubelet.ledger() if entry.state == "failed" and (not keys or entry.key in keys)}


def mounted(path: str | Path, pid: int | str = "self") -> bool:
    """Whether a process has a mount at or below `path`, or of it."""
    return str(path) in Path(f"/proc/{pid}/mountinfo").read_text()


def see_mounted_nowhere(text: str) -> None:
    for process in processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, OSError):
            assert not mounted(text, process.pid), f"{process} still has {text}"


# ---- 0c: somebody holds the output


@pytest.mark.field_fault("0c")
def test_a_child_that_outlives_its_init_holds_the_output(rig: Rig) -> None:
    """In the host's PID namespace no kernel ends it. The exit is told, the child is ended, and the shim."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod(namespaces=HOST_PIDS, log_directory=rig.log_directory())
    container = kubelet.run_container(pod, ["sh", "-c", "sleep 770001 & echo begun; exit 3"])
    assert kubelet.wait_exit(container).exit_code == 3
    until(lambda: owned(kubelet, container) == ["snapshot"], what="only its snapshot is left")
    assert not running("sleep", "770001")
    assert [line.text for line in kubelet.logs(container)] == ["begun"]
    kubelet.stop_pod(pod)
    assert shims(pod.id) == []


@pytest.mark.field_fault("0c")
def test_a_stranger_holds_the_output(rig: Rig) -> None:
    kubelet = rig.kubelet
    pod = kubelet.run_pod(log_directory=rig.log_directory())
    container = kubelet.run_container(pod, ["sh", "-c", "until [ -e /tmp/go ]; do sleep 0.05; done; echo over; exit 4"])
    with (rig.daemon.state / "io" / container / "stdout").open("wb"):
        kubelet.exec_sync(container, "touch", "/tmp/go")
        assert kubelet.wait_exit(container).exit_code == 4
        kubelet.stop_pod(pod)
        assert shims(pod.id) == []
        assert [line.text for line in kubelet.logs(container)] == ["over"]
        kubelet.remove_pod(pod)
        rig.assert_clean()


# ---- 1, 16: somebody works in a rootfs, or has a copy of it


@pytest.mark.field_fault("1", "16")
def test_tail_in_the_rootfs_of_one_container_after_another(rig: Rig) -> None:
    """Each is kept and known, none is forgotten; they go by themselves when tail ends, and only then."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    with contextlib.ExitStack() as stack:
        tails = {}
        for attempt in range(2):
            container = kubelet.run_container(pod, name="app", attempt=attempt)
            tails[container] = stack.enter_context(stranger("tail", "-f", f"{bundle(rig, container)}/rootfs/etc/passwd"))
            until(partial(has_open, tails[container].pid, "/etc/passwd"), what="tail has its file open")
            kubelet.stop(container)
            kubelet.remove(container)
        until(lambda: set(failures(rig)) >= set(tails), what="each is known to be held")
        for container, tail in tails.items():
            assert f"process {tail.pid} (tail -f" in failures(rig)[container]
            assert mounted(bundle(rig, container))
        kubelet.remove_pod(pod)
        assert set(failures(rig)) >= set(tails), "the end of the pod doesn't end their being known"
    rig.assert_clean()


def has_open(pid: int, name: str) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(link).endswith(name):
                return True
    return False


@pytest.mark.field_fault("16", "17")
@pytest.mark.parametrize("propagation", ["private", "slave"])
def test_another_mount_namespace_has_a_copy_of_all(rig: Rig, propagation: str) -> None:
    """As a log agent has that mounts the host's root: of the rootfs, of /dev/shm, of the pins. It holds up nothing, and loses them all."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    [netns] = [entry.key for entry in kubelet.ledger() if (entry.kind, entry.sandbox) == ("netns", pod.id)]
    with stranger("unshare", "--mount", f"--propagation={propagation}", "sleep", "770002") as agent:
        until(lambda: mounted(container, agent.pid) and running("sleep", "770002"), what="it has copies")
        kubelet.remove_pod(pod)
        assert not mounted(container)
        assert not Path(netns).exists()
        assert not mounted(container, agent.pid)
        assert not mounted(pod.id, agent.pid)
        assert [thing for thing in rig.left() if f"process {agent.pid} " not in thing] == []


@pytest.mark.field_fault("17")
def test_a_container_has_a_copy_of_another_pods_namespace(rig: Rig) -> None:
    """One that mounts the host's /run. Status answers, the name goes, and the container keeps running."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    [netns] = [entry.key for entry in kubelet.ledger() if (entry.kind, entry.sandbox) == ("netns", pod.id)]
    agent = kubelet.run_container(kubelet.run_pod(), mounts=[cri.Mount(container_path="/host/run", host_path="/run")])
    [(pid, _)] = init_of(agent)
    assert mounted(Path(netns).name, pid)
    kubelet.stop_pod(pod)
    assert kubelet.pod_status(pod).state == cri.SANDBOX_NOTREADY
    kubelet.remove_pod(pod)
    assert not Path(netns).exists()
    assert owned(kubelet, pod.id) == []
    assert kubelet.exec_sync(agent, "echo", "on").stdout == b"on\n"


# ---- 14: cgroups that are not empty


@pytest.mark.field_fault("14")
def test_cgroups_below_a_containers_own(rig: Rig) -> None:
    """As a systemd inside makes them; with a process in there that is not the init's child."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod)
    path = container_cgroup(pod.config.linux.cgroup_parent, container)
    with stranger("sleep", "770003") as other:
        for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
            if (hierarchy / path / "cgroup.procs").exists():
                inner = hierarchy / path / "system.slice" / "app.service"
                inner.mkdir(parents=True)
                with contextlib.suppress(OSError):  # a cpuset without a CPU takes nobody
                    (inner / "cgroup.procs").write_text(str(other.pid))
        assert any("app.service" in line for line in Path(f"/proc/{other.pid}/cgroup").read_text().splitlines())
        kubelet.stop(container)
        until(lambda: owned(kubelet, container) == ["snapshot"], what="only its snapshot is left")
        assert other.wait(5) == -9
    assert not [line for line in cgroups() if container in line]


@pytest.mark.field_fault("14")
def test_a_stranger_in_a_pods_cgroup(rig: Rig) -> None:
    """Nobody of the pod's: it lives on, is named, and the cgroup goes when it has gone, without anybody's asking."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    parent = pod.config.linux.cgroup_parent
    with stranger("sleep", "770004") as other:
        hierarchy = CGROUPS / "pids" if (CGROUPS / "pids").is_dir() else CGROUPS
        Path(f"{hierarchy}{parent}/cgroup.procs").write_text(str(other.pid))
        kubelet.remove_pod(pod)
        assert f"{other.pid} (sleep" in failures(rig)[parent]
        assert other.poll() is None
    rig.assert_clean()


# ---- 18, 30: a network plugin that neither adds nor deletes


ADDS_AND_FAILS = '"$PROGRAM" "$@" >/dev/null; echo broken pipe >&2; exit 1'


@pytest.mark.field_fault("18", "30")
def test_an_add_that_fails_late_and_a_del_that_fails_too(rig: Rig) -> None:
    """Each attempt of the kubelet leaves an address, which is known, also after a restart; and it is given back. The rest goes at once."""
    kubelet = rig.kubelet
    before = leases(rig)
    with rig.gates.delete.replaced("echo not now >&2; exit 1"):
        with rig.gates.add.replaced(ADDS_AND_FAILS):
            for _ in range(3):
                with refused(CODE.UNKNOWN, "bridge", "ADD", "broken pipe", "cni", "stays in the ledger", "not now"):
                    kubelet.run_pod()
        assert len(leases(rig) - before) == 3 * 2  # of both families
        rig.daemon.kill9()
        rig.daemon.start()
        rig.daemon.wait_recovered()
        kubelet.run_container(kubelet.run_pod(), ["true"])
        left = [entry.kind for entry in kubelet.ledger() if entry.sandbox not in {pod.id for pod in kubelet.pods()}]
        assert sorted(left) == ["cni"] * 3 + ["netns"] * 3
    rig.tidy()
    until(lambda: leases(rig) == before, what="all addresses are free again")
    rig.assert_clean()


def leases(rig: Rig) -> set[str]:
    """The addresses that host-local has given away."""
    [conflist] = rig.daemon.cni.iterdir()
    directory = Path("/var/lib/cni/networks", json.loads(conflist.read_text())["name"])
    return {path.name for path in directory.iterdir() if path.name[0].isdigit() or ":" in path.name}


# ---- 26: files where the rootfs was mounted


@pytest.mark.field_fault("26")
def test_files_in_the_directory_below_the_rootfs(rig: Rig) -> None:
    """Somebody unmounted it and something wrote there. They are left alone, told of, and hold up no other container."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run_container(pod, name="app")
    rootfs = bundle(rig, container) / "rootfs"
    subprocess.run(["umount", "--lazy", rootfs], check=True)
    (rootfs / "precious").write_text("data")
    kubelet.stop(container)
    until(lambda: "precious" in failures(rig).get(container, ""), what="it is told what is there")
    kubelet.remove(container)
    assert kubelet.exec_sync(kubelet.run_container(pod, name="app", attempt=1), "echo", "on").stdout == b"on\n"
    kubelet.remove_pod(pod)
    assert (rootfs / "precious").read_text() == "data"
    assert init_of(container) == []
    (rootfs / "precious").unlink()
    rig.assert_clean()


# ---- 28: volumes of a pod that is gone


@pytest.mark.field_fault("28")
def test_the_volumes_of_a_pod_are_free_when_it_is_removed(rig: Rig, tmp_path: Path) -> None:
    """Right then, in every mount namespace: the kubelet unmounts them next, and removes the directory."""
    kubelet = rig.kubelet
    volumes = tmp_path / "pods" / "uid" / "volumes"
    for name in ("private", "slave", "shared"):
        (volumes / name).mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", f"orlop-{name}", volumes / name], check=True)
        subprocess.run(["mount", "--make-shared", volumes / name], check=True)
    kinds = {
        "private": cri.MountPropagation.PROPAGATION_PRIVATE,
        "slave": cri.MountPropagation.PROPAGATION_HOST_TO_CONTAINER,
        "shared": cri.MountPropagation.PROPAGATION_BIDIRECTIONAL,
    }
    pod = kubelet.run_pod()
    for number in range(2):
        config = [
            cri.Mount(container_path=f"/{name}", host_path=str(volumes / name), propagation=propagation)
            for name, propagation in kinds.items()
        ]
        container = kubelet.run_container(pod, mounts=config, linux=privileged())
        kubelet.exec_sync(container, "touch", f"/private/{number}")
    kubelet.remove_pod(pod)
    for name in kinds:
        subprocess.run(["umount", volumes / name], check=True)  # not lazily: it would be busy
        see_mounted_nowhere(f"orlop-{name}")


def privileged() -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(privileged=True))


# ---- 29: descriptors and FIFOs


@pytest.mark.field_fault("29", "S4")
def test_what_fails_leaves_no_descriptor_and_no_fifo(rig: Rig) -> None:
    """Execs, creates and starts that fail, containers that are never started: in the daemon, the log copier and the shim."""
    kubelet = rig.kubelet
    pod = kubelet.run_pod(log_directory=rig.log_directory())
    container = kubelet.run_container(pod)

    def fail() -> None:
        for _ in range(3):
            assert code_of_call(lambda: kubelet.exec_sync(container, "/no/such/command")) is not CODE.OK
            assert code_of_call(lambda: kubelet.exec_sync(container, "sleep", "770005", timeout=1)) is CODE.DEADLINE_EXCEEDED
            broken = kubelet.create_container(pod, ["/no/such/command"])
            assert code_of_call(partial(kubelet.start, broken)) is not CODE.OK
            kubelet.remove(broken)
            kubelet.remove(kubelet.create_container(pod))
            config = [cri.Mount(container_path="/x", host_path="/dev/null/x")]
            assert code_of_call(partial(kubelet.create_container, pod, mounts=config)) is not CODE.OK

    def counts() -> list[int]:
        who = [rig.daemon.pid, shim_of(pod).pid, *(process.pid for process in processes() if "agent.logs.copier" in process.argv)]
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in who]

    fail()  # what is opened once and kept
    before, things = counts(), set(rig.left())
    fail()
    until(lambda: set(rig.left()) == things, what="nothing new is on the node", detail=lambda: set(rig.left()) ^ things)
    until(lambda: all(now <= then for now, then in zip(counts(), before, strict=True)), what=f"as few as before: {before}", detail=counts)
