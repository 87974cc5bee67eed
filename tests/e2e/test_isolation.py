"""What a container can't do, and what it shares: seccomp, privileges, sysctls, cgroups, namespaces."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import Client, Pod, pod_namespaces, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.inside import linux, proc_status, said
from tests.e2e.node import CGROUPS, output, processes

pytestmark = [pytest.mark.e2e, one_pair]

MIB = 1 << 20


@pytest.fixture
def pod(kubelet: Client, tmp_path: Path) -> Pod:
    return kubelet.run_pod("seen", log_directory=tmp_path, hostname="seen")


class TestConfinement:
    # Both work for anybody on a kernel with user namespaces, unless a profile forbids it.
    SCRIPT = "grep '^Seccomp:' /proc/self/status; unshare -U true 2>&1; unshare -Um mount -t tmpfs x /tmp 2>&1"

    def profile(self, kind: Any, reference: str = "") -> cri.LinuxContainerConfig:
        return linux(seccomp=cri.SecurityProfile(profile_type=kind, localhost_ref=reference))

    def test_default_profile(self, kubelet: Client, pod: Pod) -> None:
        lines = said(kubelet, pod, self.SCRIPT, code=1, linux=self.profile(cri.SecurityProfile.RuntimeDefault))
        assert lines[0] == "Seccomp:\t2"
        assert all("Operation not permitted" in line for line in lines[1:])
        assert len(lines) == 3
        ordinary = "ps; id; ls /; date +%Y; sleep 0.01; ping -c 1 127.0.0.1 >/dev/null; echo fine"
        assert said(kubelet, pod, ordinary, linux=self.profile(cri.SecurityProfile.RuntimeDefault))[-1] == "fine"

    def test_default_profile_opens_with_capabilities(self, kubelet: Client, pod: Pod) -> None:
        config = self.profile(cri.SecurityProfile.RuntimeDefault)
        config.security_context.capabilities.add_capabilities.append("SYS_ADMIN")
        assert said(kubelet, pod, "mount -t tmpfs x /tmp && umount /tmp && unshare -m echo fine", linux=config) == ["fine"]

    def test_unconfined(self, kubelet: Client, pod: Pod) -> None:
        for config in (self.profile(cri.SecurityProfile.Unconfined), linux()):
            lines = said(kubelet, pod, "grep '^Seccomp:' /proc/self/status; unshare -U echo fine 2>&1", linux=config)
            assert lines == ["Seccomp:\t0", "fine"]

    def test_a_profile_of_the_nodes(self, kubelet: Client, pod: Pod, tmp_path: Path) -> None:
        rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42}
        (tmp_path / "profile.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
        config = self.profile(cri.SecurityProfile.Localhost, str(tmp_path / "profile.json"))
        lines = said(kubelet, pod, "mkdir /tmp/x 2>&1; touch /tmp/y && echo fine", linux=config)
        assert "No message of desired type" in lines[0]
        assert lines[1] == "fine"

    def test_privileged(self, kubelet: Client, pod: Pod) -> None:
        script = (
            "grep -E '^(CapEff|Seccomp):' /proc/self/status; mount -t tmpfs x /tmp && mkdir /sys/fs/cgroup/pids/x 2>/dev/null"
            " || echo 1; cat /dev/kmsg >/dev/null & sleep 0.1; ls /dev; touch /proc/sys/kernel/domainname"
        )
        lines = said(kubelet, pod, script, linux=linux(privileged=True, masked_paths=["/proc/sys"], readonly_paths=["/proc/sys"]))
        own = proc_status(Path("/proc/self/status").read_text().splitlines())["CapBnd"]
        assert lines[:2] == [f"CapEff:\t{own}", "Seccomp:\t0"]
        assert "kmsg" in lines
        assert "can't open" not in "".join(lines)

    def test_sysctls(self, kubelet: Client, tmp_path: Path) -> None:
        wanted = {
            "net.core.somaxconn": "77",
            "net.ipv4.conf.eth0.log_martians": "1",
            "net/ipv4/ip_local_port_range": "10000 10100",
            "kernel.shm_rmid_forced": "1",
            "kernel.msgmax": "4096",
            "fs.mqueue.msg_max": "20",
        }
        before = {name: sysctl(name).read_text() for name in wanted if "eth0" not in name}
        pod = kubelet.run_pod(log_directory=tmp_path, linux=cri.LinuxPodSandboxConfig(sysctls=wanted))
        files = " ".join(str(sysctl(name)) for name in wanted)
        defaults = f"{sysctl('net.ipv4.ping_group_range')} {sysctl('net.ipv4.ip_unprivileged_port_start')}"
        lines = said(kubelet, pod, f"cat {files} {defaults}")
        assert [" ".join(line.split()) for line in lines] == [*wanted.values(), "0 2147483647", "0"]
        assert {name: sysctl(name).read_text() for name in before} == before, "the node's own are as they were"


def sysctl(name: str) -> Path:
    return Path("/proc/sys", name if "/" in name else name.replace(".", "/"))


class TestCgroups:
    def test_limits(self, kubelet: Client, pod: Pod) -> None:
        resources = cri.LinuxContainerResources(
            cpu_period=50_000, cpu_quota=20_000, cpu_shares=512, memory_limit_in_bytes=64 * MIB, cpuset_cpus="0", oom_score_adj=900
        )
        container = kubelet.run_container(pod, linux=cri.LinuxContainerConfig(resources=resources))
        if (CGROUPS / "cgroup.controllers").exists():
            assert self.read(container, pod, "", "cpu.max") == "20000 50000"
            assert self.read(container, pod, "", "memory.max") == str(64 * MIB)
            assert self.read(container, pod, "", "cpuset.cpus") == "0"
        else:
            assert self.read(container, pod, "cpu", "cpu.cfs_period_us") == "50000"
            assert self.read(container, pod, "cpu", "cpu.cfs_quota_us") == "20000"
            assert self.read(container, pod, "cpu", "cpu.shares") == "512"
            assert self.read(container, pod, "memory", "memory.limit_in_bytes") == str(64 * MIB)
            assert self.read(container, pod, "cpuset", "cpuset.cpus") == "0"
        assert kubelet.status(container).resources.linux == resources

    @staticmethod
    def read(container: str, pod: Pod, controller: str, file: str) -> str:
        return (CGROUPS / controller / pod.config.linux.cgroup_parent.lstrip("/") / container / file).read_text().strip()

    def test_everything_of_a_pod_is_in_its_cgroup(self, kubelet: Client, pod: Pod) -> None:
        container = kubelet.run_container(pod, ["sh", "-c", "sleep 5678 & sleep 5678"])
        until(lambda: len(sleepers("5678")) == 2, what="both sleep")
        for pid in sleepers("5678"):
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            paths = {line.rpartition(":")[2] for line in lines if not line.startswith("0::") or len(lines) == 1}
            assert paths == {f"{pod.config.linux.cgroup_parent}/{container}"}

    def test_hugepages_and_swap_as_the_kubelet_sends_them(self, kubelet: Client, pod: Pod) -> None:
        resources = cri.LinuxContainerResources(
            memory_limit_in_bytes=64 * MIB,
            memory_swap_limit_in_bytes=64 * MIB,
            hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=0), cri.HugepageLimit(page_size="1GB", limit=0)],
        )
        assert said(kubelet, pod, ["echo", "fine"], linux=cri.LinuxContainerConfig(resources=resources)) == ["fine"]


def sleepers(seconds: str) -> list[int]:
    return [process.pid for process in processes() if process.argv == ("sleep", seconds)]


class TestNamespaces:
    def test_the_hosts_network(self, kubelet: Client, tmp_path: Path) -> None:
        namespaces = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER, ipc=cri.POD)
        pod = kubelet.run_pod(log_directory=tmp_path, namespaces=namespaces)
        assert kubelet.pod_status(pod).network == cri.PodSandboxNetworkStatus()
        lines = said(kubelet, pod, "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; hostname; cat /etc/hosts")
        hosts = Path("/etc/hosts").read_text().splitlines()
        assert lines == [own_namespace("net"), own_namespace("uts"), os.uname().nodename, *hosts]

    def test_the_hosts_ipc(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path, namespaces=cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.NODE))
        lines = said(kubelet, pod, "readlink /proc/self/ns/ipc; touch /dev/shm/orlop-e2e-ipc; grep -c eth0 /proc/net/dev")
        assert lines == [own_namespace("ipc"), "1"]
        Path("/dev/shm/orlop-e2e-ipc").unlink()

    def test_the_hosts_processes(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path, namespaces=cri.NamespaceOption(network=cri.POD, pid=cri.NODE, ipc=cri.POD))
        container = kubelet.run_container(pod, ["sh", "-c", "sleep 5679 & sleep 5679"])
        until(lambda: len(sleepers("5679")) == 2, what="both sleep")
        assert kubelet.exec_sync(container, "readlink", "/proc/self/ns/pid").stdout.decode().strip() == own_namespace("pid")
        assert f" {os.getpid()} " in kubelet.exec_sync(container, "sh", "-c", "echo '' /proc/[0-9]* '' | sed 's:/proc/::g'").stdout.decode()
        kubelet.stop(container)
        assert sleepers("5679") == [], "without a PID namespace to end, each is killed"

    def test_the_pods_processes_are_shared(self, kubelet: Client, tmp_path: Path) -> None:
        pod = kubelet.run_pod(log_directory=tmp_path, namespaces=cri.NamespaceOption(network=cri.POD, pid=cri.POD, ipc=cri.POD))
        first, second = kubelet.run_container(pod, ["sleep", "5680"]), kubelet.run_container(pod, ["sleep", "5681"])
        seen = kubelet.exec_sync(second, "ps", "-o", "pid,args").stdout.decode()
        assert [line.split()[1:] for line in seen.splitlines()[1:4]] == [
            ["/bin/sleep", "1000000"], ["sleep", "5680"], ["sleep", "5681"],
        ]  # fmt: skip
        kubelet.stop(first)
        assert kubelet.status(second).state == cri.CONTAINER_RUNNING

    def test_another_containers_processes(self, kubelet: Client, pod: Pod) -> None:
        """As `kubectl debug --target` asks for it."""
        target = kubelet.run_container(pod, ["sleep", "5682"])
        options = pod_namespaces()
        options.pid, options.target_id = cri.TARGET, target
        debugger = kubelet.run_container(pod, linux=linux(namespace_options=options))
        assert b"sleep 5682" in kubelet.exec_sync(debugger, "ps").stdout
        kubelet.stop(target)
        kubelet.wait_exit(debugger)  # the namespace ends with its first process
        gone = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "target_id", target):
            kubelet.create_container(pod, linux=gone)

    def test_ports(self, kubelet: Client, tmp_path: Path) -> None:
        port = cri.PortMapping(protocol=cri.TCP, container_port=8080, host_port=18080)
        pod = kubelet.run_pod(log_directory=tmp_path, port_mappings=[port])
        kubelet.run_container(pod, ["sh", "-c", "echo found >/tmp/index.html; httpd -f -p 8080 -h /tmp"])
        address = kubelet.pod_status(pod).network.ip
        fetch = ["busybox", "wget", "-q", "-O", "-"]

        def fetched(url: str) -> str:
            return subprocess.run([*fetch, url], check=False, capture_output=True, text=True, timeout=10).stdout

        until(lambda: fetched(f"http://{address}:8080/"), what="the server answers")
        gateway = json.loads(output("ip", "-json", "route", "get", address))[0]["prefsrc"]
        assert fetched(f"http://{gateway}:18080/") == "found\n"
        kubelet.stop_pod(pod)
        assert fetched(f"http://{gateway}:18080/") == ""


def own_namespace(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")
