"""What a container finds when it starts: everything a Pod manifest can say, as the process inside sees it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, Pod, pod_namespaces, refused, until
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.node import CGROUPS, output, processes
from tests.images import busybox_image

pytestmark = [pytest.mark.e2e, one_pair]

OWN_IMAGE = "orlop.test/own:latest"
SYS_RESOURCE = 24
MIB = 1 << 20


@pytest.fixture
def pod(kubelet: Client, tmp_path: Path) -> Pod:
    return kubelet.run_pod("seen", log_directory=tmp_path, hostname="seen")


@pytest.fixture(scope="module")
def own_image(shared_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that says everything an image can say about its process."""
    config = {
        "Entrypoint": ["/bin/echo", "entry"],
        "Cmd": ["cmd"],
        "Env": ["PATH=/bin", "FROM_IMAGE=yes", "BOTH=image"],
        "WorkingDir": "/home",
        "User": "nobody:tty",
        "StopSignal": "SIGUSR2",
    }
    archive = busybox_image(tmp_path_factory.mktemp("own") / "own.tar", OWN_IMAGE, config)
    shared_daemon.orlop("image", "import", archive)
    yield OWN_IMAGE
    shared_daemon.orlop("image", "rm", OWN_IMAGE)


def linux(**security: Any) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**security))


def said(kubelet: Client, pod: Pod, command: Sequence[str] | str = (), *, code: int = 0, **config: Any) -> list[str]:
    """The lines that a container with this command, or shell script, printed before it ended with `code`."""
    command = ["sh", "-c", command] if isinstance(command, str) else command
    container = kubelet.run_container(pod, command, **config)
    status = kubelet.wait_exit(container)
    lines = [line.text for line in kubelet.logs(container)]
    assert status.exit_code == code, lines
    return lines


def proc_status(lines: Sequence[str]) -> dict[str, str]:
    """Fields of /proc/self/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


class TestProcess:
    @pytest.mark.parametrize(
        ("command", "args", "line"),
        [
            ((), (), "entry cmd"),
            ((), ("x", "y"), "entry x y"),
            (("/bin/echo", "other"), (), "other"),
            (("/bin/echo", "other"), ("x",), "other x"),
        ],
    )
    def test_command_and_args_over_entrypoint_and_cmd(
        self, kubelet: Client, pod: Pod, own_image: str, command: Sequence[str], args: Sequence[str], line: str
    ) -> None:
        assert said(kubelet, pod, command, args=args, image=own_image) == [line]

    def test_environment(self, kubelet: Client, pod: Pod, own_image: str) -> None:
        env = {"BOTH": b"config", "EMPTY": b"", "UMLAUT": "ä".encode(), "LINES": b"a\tb=c"}
        lines = said(kubelet, pod, ["env"], image=own_image, env=env)
        assert {"PATH=/bin", "FROM_IMAGE=yes", "BOTH=config", "EMPTY=", "UMLAUT=ä", "LINES=a\tb=c", "HOSTNAME=seen"} <= set(lines)
        assert len([line for line in lines if line.startswith("BOTH=")]) == 1

    def test_environment_that_is_not_utf8(self, kubelet: Client, pod: Pod) -> None:
        """The CRI carries bytes; OCI's config.json is JSON, which has none. The call works, and what is UTF-8 arrives unchanged.

        The other bytes: runc (1.1 to 1.3) and crun with json-c (1.28) make U+FFFD of each, crun with yajl (1.8, 1.21) the surrogate's
        three bytes. Raw bytes in config.json would survive in crun with json-c, become U+FFFD in runc, and make crun with yajl refuse
        to start. What is executed later passes through the shim's JSON as well, and gets U+FFFD from each of them.
        """
        container = kubelet.run_container(pod, env={"RAW": b"a\xff\xfe\xc3\xa4z"})
        found = kubelet.exec_sync(container, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ").stdout
        [raw] = [line for line in found.splitlines() if line.startswith(b"RAW=")]
        assert raw.startswith(b"RAW=a")
        assert raw.endswith(b"\xc3\xa4z")
        assert kubelet.exec_sync(container, "sh", "-c", 'printf "$RAW"').stdout == "a\ufffd\ufffdäz".encode()

    def test_working_directory(self, kubelet: Client, pod: Pod, own_image: str) -> None:
        assert said(kubelet, pod, ["pwd"]) == ["/"]
        assert said(kubelet, pod, ["/bin/pwd"], image=own_image) == ["/home"]
        assert said(kubelet, pod, ["pwd"], working_dir="/made/for/it") == ["/made/for/it"]

    @pytest.mark.parametrize(
        ("security", "expected"),
        [
            ({}, "uid=0(root) gid=0(root) groups=0(root)"),
            ({"run_as_user": cri.Int64Value(value=1000)}, "uid=1000 gid=0(root) groups=0(root)"),
            ({"run_as_user": cri.Int64Value(value=65534)}, "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)"),
            ({"run_as_username": "nobody"}, "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)"),
            (
                {"run_as_user": cri.Int64Value(value=1000), "run_as_group": cri.Int64Value(value=3000), "supplemental_groups": [5, 4000]},
                "uid=1000 gid=3000 groups=5(tty),3000,4000",
            ),
        ],
    )
    def test_user_and_groups(self, kubelet: Client, pod: Pod, security: dict[str, Any], expected: str) -> None:
        assert said(kubelet, pod, ["id"], linux=linux(**security)) == [expected]

    def test_the_images_user(self, kubelet: Client, pod: Pod, own_image: str) -> None:
        container = kubelet.run_container(pod, ["/bin/id"], image=own_image)
        kubelet.wait_exit(container)
        assert [line.text for line in kubelet.logs(container)] == ["uid=65534(nobody) gid=5(tty) groups=5(tty)"]
        status = kubelet.status(container)
        assert (status.user.linux.uid, status.user.linux.gid, list(status.user.linux.supplemental_groups)) == (65534, 5, [5])
        assert status.stop_signal == cri.SIGNAL_SIGUSR2

    def test_capabilities(self, kubelet: Client, pod: Pod) -> None:
        def sets(**security: Any) -> dict[str, int]:
            fields = proc_status(said(kubelet, pod, ["grep", "Cap", "/proc/self/status"], linux=linux(**security)))
            return {name: int(value, 16) for name, value in fields.items()}

        default = sets()
        assert default["CapEff"] == default["CapPrm"] == default["CapBnd"] == 0xA80425FB, "the 14 that Docker gave"
        assert default["CapInh"] == default["CapAmb"] == 0
        capability = cri.Capability(drop_capabilities=["ALL"], add_capabilities=["NET_BIND_SERVICE", "CAP_CHOWN"])
        assert sets(capabilities=capability)["CapEff"] == 1 << 10 | 1 << 0
        assert sets(capabilities=cri.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["MKNOD"]))["CapEff"] == (
            0xA80425FB | 1 << 12
        ) & ~(1 << 27)
        own = int(proc_status(Path("/proc/self/status").read_text().splitlines())["CapBnd"], 16)
        assert sets(capabilities=cri.Capability(add_capabilities=["ALL"]))["CapEff"] == own, "what the node has to give"
        user = cri.Int64Value(value=1000)
        assert sets(run_as_user=user)["CapEff"] == 0
        ambient = sets(run_as_user=user, capabilities=cri.Capability(add_ambient_capabilities=["NET_BIND_SERVICE"]))
        assert ambient["CapEff"] == ambient["CapAmb"] == 1 << 10

    def test_no_new_privileges(self, kubelet: Client, pod: Pod) -> None:
        command = ["grep", "NoNewPrivs", "/proc/self/status"]
        assert said(kubelet, pod, command) == ["NoNewPrivs:\t0"]
        assert said(kubelet, pod, command, linux=linux(no_new_privs=True)) == ["NoNewPrivs:\t1"]

    def test_open_files(self, kubelet: Client, pod: Pod) -> None:
        soft, hard = said(kubelet, pod, "ulimit -Sn; ulimit -Hn")
        assert (soft, 1024 <= int(hard) <= 524288) == ("1024", True)

    @pytest.mark.parametrize("wanted", [0, 500, 1000, -500, -997])
    def test_oom_score(self, kubelet: Client, pod: Pod, wanted: int) -> None:
        """Where the node forbids a lower value than its own, the container starts with that one, and Status says so."""
        bounding = int(proc_status(Path("/proc/self/status").read_text().splitlines())["CapBnd"], 16)
        floor = -1000 if bounding >> SYS_RESOURCE & 1 else int(Path("/proc/self/oom_score_adj").read_text())
        config = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(oom_score_adj=wanted))
        assert said(kubelet, pod, ["cat", "/proc/self/oom_score_adj"], linux=config) == [str(max(wanted, floor))]
        conditions = {condition.type: condition for condition in kubelet.runtime.Status(cri.StatusRequest()).status.conditions}
        assert ("oom_score_adj" in conditions["NodeUnrestricted"].message) == (floor > -1000)


class TestFiles:
    def test_root(self, kubelet: Client, pod: Pod) -> None:
        assert said(kubelet, pod, "echo text >/new; cat /new") == ["text"]
        lines = said(kubelet, pod, "touch /new 2>&1; touch /tmp/new 2>&1; true", linux=linux(readonly_rootfs=True))
        assert [line.rpartition(": ")[2] for line in lines] == ["Read-only file system"] * 2

    def test_what_a_container_writes_is_its_own(self, kubelet: Client, pod: Pod) -> None:
        first, second = kubelet.run_container(pod), kubelet.run_container(pod)
        kubelet.exec_sync(first, "sh", "-c", "echo mine >/tmp/file; rm /bin/ls; mkdir -p /a/b")
        assert kubelet.exec_sync(second, "sh", "-c", "ls /tmp; ls -d /a; ls -d /bin/ls").stdout == b"/bin/ls\n"

    def test_mounts(self, kubelet: Client, pod: Pod, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data/file").write_text("data")
        (tmp_path / "inner").mkdir()
        (tmp_path / "hosts").write_text("own hosts\n")
        (tmp_path / "link").symlink_to(tmp_path / "data")
        mounts = [
            cri.Mount(host_path=str(tmp_path / "inner"), container_path="/data/inner/"),  # before the one it lies in
            cri.Mount(host_path=str(tmp_path / "data"), container_path="/data"),
            cri.Mount(host_path=str(tmp_path / "link"), container_path="/ro", readonly=True),
            cri.Mount(host_path=str(tmp_path / "hosts"), container_path="/etc/hosts"),
            cri.Mount(host_path=str(tmp_path / "data/file"), container_path="/deep/er/file", readonly=True),
        ]
        (tmp_path / "data/inner").mkdir()
        script = "cat /ro/file /deep/er/file /etc/hosts; touch /data/new /data/inner/new; touch /ro/new 2>&1; echo >/deep/er/file"
        lines = said(kubelet, pod, script, code=1, mounts=mounts)
        assert lines[0] == "datadataown hosts"
        assert "Read-only file system" in lines[1]
        assert (tmp_path / "data/new").exists()
        assert (tmp_path / "inner/new").exists()
        assert not (tmp_path / "data/inner/new").exists()

    def test_mount_options(self, kubelet: Client, pod: Pod, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("#!/bin/sh\necho ran\n")
        script.chmod(0o755)
        mount = cri.Mount(host_path=str(tmp_path), container_path="/data", mount_options=["noexec", "nosuid", "nodev"])
        lines = said(kubelet, pod, "/data/script 2>&1; grep ' /data ' /proc/mounts", mounts=[mount])
        assert "Permission denied" in lines[0]
        assert {"noexec", "nosuid", "nodev"} <= set(lines[1].split()[3].split(","))
        assert said(kubelet, pod, ["/data/script"], mounts=[cri.Mount(host_path=str(tmp_path), container_path="/data")]) == ["ran"]

    @pytest.fixture
    def shared(self, tmp_path: Path) -> Iterator[Path]:
        """A directory on a shared mount of the node, with whatever is mounted below it."""
        (tmp_path / "shared/sub").mkdir(parents=True)
        yield tmp_path / "shared"
        subprocess.run(["umount", "--recursive", tmp_path / "shared/sub"], check=False, capture_output=True)

    @staticmethod
    def mounted(at: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "e2e", at], check=True)
        (at / "file").touch()

    def test_read_only_all_the_way_down(self, kubelet: Client, pod: Pod, shared: Path) -> None:
        self.mounted(shared / "sub")
        flat = cri.Mount(host_path=str(shared), container_path="/data", readonly=True)
        deep = cri.Mount(host_path=str(shared), container_path="/data", readonly=True, recursive_read_only=True)
        assert said(kubelet, pod, "touch /data/sub/flat", mounts=[flat]) == []
        assert "Read-only" in said(kubelet, pod, "touch /data/sub/deep 2>&1", code=1, mounts=[deep])[0]

    def test_propagation_from_the_host(self, kubelet: Client, pod: Pod, shared: Path) -> None:
        def seeing(propagation: cri.MountPropagation) -> str:
            return kubelet.run_container(pod, mounts=[cri.Mount(host_path=str(shared), container_path="/data", propagation=propagation)])

        private = seeing(cri.PROPAGATION_PRIVATE)
        slave = seeing(cri.PROPAGATION_HOST_TO_CONTAINER)
        self.mounted(shared / "sub")
        assert kubelet.exec_sync(private, "ls", "/data/sub").stdout == b""
        assert kubelet.exec_sync(slave, "ls", "/data/sub").stdout == b"file\n"
        subprocess.run(["umount", shared / "sub"], check=True)
        assert kubelet.exec_sync(slave, "ls", "/data/sub").stdout == b""

    def test_propagation_to_the_host(self, kubelet: Client, pod: Pod, shared: Path) -> None:
        """As CSI drivers do it. What they mounted is the host's then, and stays when the pod is gone."""
        privileged = linux(privileged=True)
        mount = cri.Mount(host_path=str(shared), container_path="/data", propagation=cri.PROPAGATION_BIDIRECTIONAL)
        container = kubelet.run_container(pod, linux=privileged, mounts=[mount])
        assert kubelet.exec_sync(container, "sh", "-c", "mount -t tmpfs csi /data/sub && touch /data/sub/file").exit_code == 0
        assert (shared / "sub/file").exists()
        kubelet.stop(container)
        kubelet.remove(container)
        assert (shared / "sub/file").exists()

    def test_devices(self, kubelet: Client, pod: Pod, tmp_path: Path) -> None:
        os.mknod(tmp_path / "zero", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        (tmp_path / "many").mkdir()
        os.mknod(tmp_path / "many/full", 0o600 | stat.S_IFCHR, os.makedev(1, 7))
        devices = [
            cri.Device(host_path=str(tmp_path / "zero"), container_path="/dev/nothing", permissions="r"),
            cri.Device(host_path=str(tmp_path / "many"), container_path="/dev/many", permissions="rwm"),
        ]
        lines = said(kubelet, pod, "head -c 3 /dev/nothing | xxd -p; stat -c '%a %t %T' /dev/nothing /dev/many/full", devices=devices)
        assert lines == ["000000", "600 1 5", "600 1 7"]

    def test_other_devices_are_out_of_reach(self, kubelet: Client, pod: Pod) -> None:
        """Making a node is allowed (CAP_MKNOD is among the defaults), opening it isn't."""
        lines = said(kubelet, pod, "ls /dev; mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg 2>&1", code=1)
        assert set(lines[:-1]) <= {
            "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
            "urandom", "zero",
        }  # fmt: skip
        assert "not permitted" in lines[-1]

    def test_names(self, kubelet: Client, tmp_path: Path) -> None:
        dns = cri.DNSConfig(servers=["192.0.2.1", "2001:db8::1"], searches=["e2e.svc", "svc"], options=["ndots:5"])
        pod = kubelet.run_pod(log_directory=tmp_path, hostname="called", dns_config=dns)
        container = kubelet.run_container(pod)

        def read(*command: str) -> str:
            return str(kubelet.exec_sync(container, *command).stdout.decode())

        assert read("hostname") == read("cat", "/etc/hostname") == "called\n"
        assert read("cat", "/etc/resolv.conf") == "search e2e.svc svc\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5\n"
        assert "127.0.0.1\tlocalhost\n" in read("cat", "/etc/hosts")
        kubelet.exec_sync(container, "sh", "-c", "echo 192.0.2.7 other >>/etc/hosts")
        assert "192.0.2.7 other" in kubelet.exec_sync(kubelet.run_container(pod), "cat", "/etc/hosts").stdout.decode(), "the pod shares it"

    def test_without_a_dns_config_the_nodes(self, kubelet: Client, pod: Pod) -> None:
        assert said(kubelet, pod, ["cat", "/etc/resolv.conf"]) == Path("/etc/resolv.conf").read_text().splitlines()

    def test_shared_memory(self, kubelet: Client, pod: Pod) -> None:
        first, second = kubelet.run_container(pod), kubelet.run_container(pod)
        kubelet.exec_sync(first, "sh", "-c", "echo hello >/dev/shm/file")
        assert kubelet.exec_sync(second, "cat", "/dev/shm/file").stdout == b"hello\n"
        assert "65536" in kubelet.exec_sync(second, "df", "-k", "/dev/shm").stdout.decode().splitlines()[1].split()
        assert not Path("/dev/shm/file").exists()
        kubelet.remove(first)
        assert kubelet.exec_sync(second, "cat", "/dev/shm/file").stdout == b"hello\n"

    def test_masked_and_read_only_paths(self, kubelet: Client, pod: Pod) -> None:
        hidden = linux(masked_paths=["/proc/interrupts", "/proc/irq", "/proc/not/there"], readonly_paths=["/proc/sys"])
        script = "cat /proc/interrupts; ls /proc/irq; touch /proc/irq/x; echo 1 >/proc/sys/kernel/domainname"
        lines = said(kubelet, pod, script, code=1, linux=hidden)
        assert len(lines) == 2, "nothing in the masked file and directory"
        assert all(line.endswith("Read-only file system") for line in lines)
        assert said(kubelet, pod, "head -c 9 /proc/interrupts | wc -c; ls /proc/irq | wc -l")[0] == "9"

    def test_sys_is_read_only(self, kubelet: Client, pod: Pod) -> None:
        script = "ls /sys/class/net; for top in /sys/fs/cgroup/*/; do mkdir $top/x; done; mkdir /sys/kernel/x"
        eth0, lo, *refusals = said(kubelet, pod, script, code=1)
        assert (eth0, lo) == ("eth0", "lo"), "of the pod's network"
        assert len(refusals) >= 2
        assert all(line.startswith("mkdir") and line.endswith("Read-only file system") for line in refusals)


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


def test_images_are_found_by_each_of_their_names(kubelet: Client, pod: Pod) -> None:
    image = kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=BUSYBOX))).image
    for name in (image.id, image.id.removeprefix("sha256:"), image.repo_digests[0], BUSYBOX, BUSYBOX.removesuffix(":latest")):
        assert said(kubelet, pod, ["echo", "fine"], image=name) == ["fine"], name
