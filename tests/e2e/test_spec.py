"""What a container finds when it starts: everything a Pod manifest can say, as the process inside sees it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, Pod
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import Daemon
from tests.e2e.inside import linux, proc_status, said
from tests.images import busybox_image

pytestmark = [pytest.mark.e2e, one_pair]

OWN_IMAGE = "orlop.test/own:latest"
MEMBERS_IMAGE = "orlop.test/members:latest"
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


@pytest.fixture(scope="module")
def members_image(shared_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image whose user is in two groups by /etc/group alone."""
    files = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home:/bin/sh\nbob:x:1001:1001::/home:/bin/sh\n",
        "etc/group": b"root:x:0:\nann:x:1000:\nbob:x:1001:\nextra:x:50000:ann\nmore:x:60000:bob,ann\nother:x:70000:bob\n",
    }
    archive = busybox_image(tmp_path_factory.mktemp("members") / "members.tar", MEMBERS_IMAGE, {"User": "ann"}, files)
    shared_daemon.orlop("image", "import", archive)
    yield MEMBERS_IMAGE
    shared_daemon.orlop("image", "rm", MEMBERS_IMAGE)


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

    @pytest.mark.parametrize(
        ("security", "expected"),
        [
            ({}, (1000, 1000, [1000, 50000, 60000])),  # Merge is the default
            ({"supplemental_groups_policy": cri.Strict}, (1000, 1000, [1000])),
            ({"supplemental_groups": [4000, 50000]}, (1000, 1000, [1000, 4000, 50000, 60000])),
            ({"supplemental_groups": [4000], "supplemental_groups_policy": cri.Strict}, (1000, 1000, [1000, 4000])),
            ({"run_as_user": cri.Int64Value(value=1000)}, (1000, 1000, [1000, 50000, 60000])),
            ({"run_as_username": "ann", "supplemental_groups_policy": cri.Strict}, (1000, 1000, [1000])),
            (
                {"run_as_user": cri.Int64Value(value=1000), "run_as_group": cri.Int64Value(value=3000)},
                (1000, 3000, [3000, 50000, 60000]),
            ),
            (
                {
                    "run_as_user": cri.Int64Value(value=1000), "run_as_group": cri.Int64Value(value=3000),
                    "supplemental_groups": [4000], "supplemental_groups_policy": cri.Strict,
                },
                (1000, 3000, [3000, 4000]),
            ),
            ({"run_as_user": cri.Int64Value(value=2000)}, (2000, 0, [0])),  # nobody in the image
        ],
    )  # fmt: skip
    def test_groups_of_the_image(
        self, kubelet: Client, pod: Pod, members_image: str, security: dict[str, Any], expected: tuple[int, int, list[int]]
    ) -> None:
        """KEP-3619: Strict leaves out what the image's /etc/group adds; Status says what the first process got, and an exec gets it too."""
        container = kubelet.run_container(pod, ["sleep", "1000000"], image=members_image, linux=linux(**security))
        user = kubelet.status(container).user.linux
        assert (user.uid, user.gid, sorted(user.supplemental_groups)) == expected
        for process in ("1", "self"):
            fields = proc_status(kubelet.exec_sync(container, "cat", f"/proc/{process}/status").stdout.decode().splitlines())
            assert [int(fields[name].split()[0]) for name in ("Uid", "Gid")] == list(expected[:2])
            assert sorted(map(int, fields["Groups"].split())) == expected[2]

    def test_status_says_that_the_policy_is_heeded(self, kubelet: Client) -> None:
        """Without it the kubelet doesn't start a pod that asks for Strict."""
        answer: cri.StatusResponse = kubelet.runtime.Status(cri.StatusRequest())
        assert answer.features == cri.RuntimeFeatures(supplemental_groups_policy=True, mount_options=True)

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


def test_images_are_found_by_each_of_their_names(kubelet: Client, pod: Pod) -> None:
    image = kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=BUSYBOX))).image
    for name in (image.id, image.id.removeprefix("sha256:"), image.repo_digests[0], BUSYBOX, BUSYBOX.removesuffix(":latest")):
        assert said(kubelet, pod, ["echo", "fine"], image=name) == ["fine"], name
