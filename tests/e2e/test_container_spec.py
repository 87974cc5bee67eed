"""What the OCI spec says, as a container sees it: confinement, mounts, devices and limits, with each engine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, pod_namespaces, refused
from tests.e2e.toolbox import Pair

pytestmark = pytest.mark.e2e

MIB = 1 << 20
HOST = cri.NamespaceOption(network=cri.NODE, pid=cri.NODE, ipc=cri.NODE)
DEFAULT_SECCOMP = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)


def security(namespaces: cri.NamespaceOption | None = None, **fields: Any) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(
        security_context=cri.LinuxContainerSecurityContext(namespace_options=namespaces or pod_namespaces(), **fields)
    )


def run(kubelet: Client, pod: Pod, **config: Any) -> str:
    return kubelet.run_container(pod, ["sleep", "1000000"], **config)


def output(kubelet: Client, container: str, script: str) -> str:
    """Of a shell script that has to end with 0."""
    answer = kubelet.exec_sync(container, "sh", "-c", script)
    assert answer.exit_code == 0, answer
    return answer.stdout.decode()


def fails(kubelet: Client, container: str, script: str, words: str) -> None:
    answer = kubelet.exec_sync(container, "sh", "-c", script)
    assert answer.exit_code != 0, answer
    assert words in answer.stderr.decode(), answer


def test_the_default_seccomp_profile(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    container = run(kubelet, pod, linux=security(seccomp=DEFAULT_SECCOMP, capabilities=cri.Capability(add_capabilities=["NET_ADMIN"])))
    assert "Seccomp:\t2" in output(kubelet, container, "cat /proc/self/status")
    fails(kubelet, container, "mount -t tmpfs x /tmp", "permission denied")
    output(kubelet, container, "ls -l / | head -1; (echo a; sleep 0) | cat; ip link show >/dev/null 2>&1 || ls /sys/class/net")
    open_one = run(kubelet, pod, linux=security(seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.Unconfined)))
    assert "Seccomp:\t0" in output(kubelet, open_one, "cat /proc/self/status")


def test_capabilities_and_new_privileges(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    drop = cri.Capability(drop_capabilities=["ALL"], add_capabilities=["CHOWN"])
    container = run(kubelet, pod, linux=security(capabilities=drop, no_new_privs=True))
    status = output(kubelet, container, "cat /proc/self/status")
    assert "CapBnd:\t0000000000000001" in status
    assert "CapEff:\t0000000000000001" in status
    assert "NoNewPrivs:\t1" in status


def test_masked_and_read_only_paths(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    linux = security(masked_paths=["/proc/cpuinfo", "/proc/no-such"], readonly_paths=["/proc/sys"], readonly_rootfs=True)
    container = run(kubelet, pod, linux=linux)
    assert output(kubelet, container, "cat /proc/cpuinfo") == ""
    fails(kubelet, container, "echo 1 > /proc/sys/kernel/domainname", "Read-only")
    fails(kubelet, container, "touch /x", "Read-only")
    fails(kubelet, container, "echo x >> /etc/hosts", "Read-only")
    fails(kubelet, container, "echo 1 > /sys/kernel/uevent_seqnum", "Read-only")


def test_a_pod_in_the_nodes_namespaces(kubelet: Client) -> None:
    pod = kubelet.run_pod(namespaces=HOST)
    container = run(kubelet, pod, linux=security(HOST))
    for kind in ("net", "ipc", "uts", "pid"):
        assert output(kubelet, container, f"readlink /proc/self/ns/{kind}").strip() == str(Path(f"/proc/self/ns/{kind}").readlink())
    assert "lo" in output(kubelet, container, "ls /sys/class/net").split()
    assert output(kubelet, container, "cat /proc/mounts | grep ' /sys ' | cut -d' ' -f3,4").startswith("sysfs ro,")
    # Nothing of the node can be written below a /sys that only looks read-only; the tmpfs with v1's hierarchies is the container's own.
    below = [line.split() for line in output(kubelet, container, "grep ' /sys' /proc/mounts").splitlines()]
    assert [target for _, target, kind, options, *_ in below if kind != "tmpfs" and options.startswith("rw")] == []


def test_a_privileged_container(kubelet: Client) -> None:
    pod = kubelet.run_pod(namespaces=HOST)
    container = run(kubelet, pod, linux=security(HOST, privileged=True))
    output(kubelet, container, "test -c /dev/null && test -e /dev/ptmx && mount -t tmpfs x /tmp")
    assert output(kubelet, container, "grep ' /sys ' /proc/mounts | cut -d' ' -f4").startswith("rw,")


def test_a_privileged_container_with_the_nodes_dev(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    dev = cri.Mount(container_path="/dev", host_path="/dev")
    container = run(kubelet, pod, linux=security(privileged=True), mounts=[dev])
    output(kubelet, container, "echo x > /dev/null; test -d /dev/shm; touch /dev/shm/mine")
    assert not Path("/dev/shm/mine").exists()


def test_devices(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    device = cri.Device(container_path="/dev/mine", host_path="/dev/zero", permissions="r")
    container = run(kubelet, pod, devices=[device])
    assert output(kubelet, container, "head -c 3 /dev/mine | od -An -tx1").split() == ["00", "00", "00"]
    with refused(grpc.StatusCode.NOT_FOUND, "config.devices['/dev/mine']", "/dev/no-such"):
        kubelet.create_container(pod, devices=[cri.Device(container_path="/dev/mine", host_path="/dev/no-such")])


def test_volumes(kubelet: Client, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/mine").write_text("mine")
    (tmp_path / "below").mkdir()
    pod = kubelet.run_pod(hostname="web")
    mounts = [
        cri.Mount(container_path="/data/below", host_path=str(tmp_path / "below"), mount_options=["noexec"]),
        cri.Mount(container_path="/data", host_path=str(tmp_path), readonly=True),
        cri.Mount(container_path="/etc", host_path=str(tmp_path / "etc")),
    ]
    container = run(kubelet, pod, mounts=mounts)
    assert output(kubelet, container, "cat /etc/mine /etc/hostname") == "mineweb\n"
    fails(kubelet, container, "touch /data/x", "Read-only")
    output(kubelet, container, "cp /bin/busybox /data/below/x")
    fails(kubelet, container, "/data/below/x", "Permission denied")
    with refused(grpc.StatusCode.NOT_FOUND, "config.mounts['/x']", "/no/such"):
        kubelet.create_container(pod, mounts=[cri.Mount(container_path="/x", host_path="/no/such")])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "config.mounts['/']"):
        kubelet.create_container(pod, mounts=[cri.Mount(container_path="/", host_path="/tmp")])


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A directory of the node with a mount below it, and one below that."""
    (tmp_path / "tree/one").mkdir(parents=True)
    for place in (tmp_path / "tree/one", tmp_path / "tree/one/two"):
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "e2e", place], check=True)
    yield tmp_path / "tree"
    subprocess.run(["umount", "--recursive", tmp_path / "tree/one"], check=True)


def test_read_only_with_all_that_is_mounted_below(kubelet: Client, pair: Pair, tree: Path) -> None:
    """KEP-3857: where Status has the feature it holds, and elsewhere nobody gets less than was asked for."""
    status: cri.StatusResponse = kubelet.runtime.Status(cri.StatusRequest(verbose=True))
    assert [handler.name for handler in status.runtime_handlers] == ["", pair.engine, "task"]
    able = pair != Pair("1.6", "crun")  # crun 1.8 can't be asked: it has no `features` yet
    assert {handler.features.recursive_read_only_mounts for handler in status.runtime_handlers} == {able}
    reason = json.loads(status.info["config"])["handlers"][pair.engine]["noRecursiveReadOnly"]
    assert ("unknown command features" in reason) is not able
    pod = kubelet.run_pod()
    deep = cri.Mount(container_path="/data", host_path=str(tree), readonly=True, recursive_read_only=True)
    if not able:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "RROUnsupported: config.mounts['/data']", "features"):
            kubelet.create_container(pod, mounts=[deep])
        return
    flat = cri.Mount(container_path="/flat", host_path=str(tree), readonly=True)
    container = run(kubelet, pod, mounts=[deep, flat])
    for place in ("/data", "/data/one", "/data/one/two", "/flat"):
        fails(kubelet, container, f"touch {place}/x", "Read-only")
    output(kubelet, container, "touch /flat/one/x /flat/one/two/x; test -e /data/one/two/x")


def test_limits(kubelet: Client) -> None:
    pod = kubelet.run_pod()
    linux = security()
    linux.resources.CopyFrom(
        cri.LinuxContainerResources(cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_limit_in_bytes=64 * MIB, oom_score_adj=500)
    )
    container = run(kubelet, pod, linux=linux)
    assert output(kubelet, container, "cat /proc/1/oom_score_adj").strip() == "500"
    limit = output(kubelet, container, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max")
    assert int(limit) == 64 * MIB
