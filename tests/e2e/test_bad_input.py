"""What can't be is refused: the right code, a sentence that names field and value, nothing left, and the daemon goes on.

`kubelet` finds what is left; after each test here, a Version call finds out whether the daemon is there.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import api_pb2 as cri
from tests.e2e.client import BUSYBOX, Client, Pod, refused
from tests.e2e.conftest import one_pair
from tests.e2e.daemon import PAUSE, Daemon
from tests.images import busybox_image

pytestmark = [pytest.mark.e2e, one_pair]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
LONG = "x" * 10_000
HOSTILE_NAMES = ["../../etc", "a/b", "..", "a\0b", "a\nb", LONG, ""]

CASE_IDS = {"": "empty", LONG: "long"}


def case_id(value: object) -> str | None:
    return (CASE_IDS.get(value) or re.sub(r"[^\w.:-]+", "_", value)[:30]) if isinstance(value, str) else None


@pytest.fixture(autouse=True)
def still_there(kubelet: Client) -> Iterator[None]:
    yield
    kubelet.runtime.Version(cri.VersionRequest(), timeout=5)


@pytest.fixture
def pod(kubelet: Client, tmp_path: Path) -> Pod:
    return kubelet.run_pod(log_directory=tmp_path)


def options(**fields: Any) -> cri.LinuxPodSandboxConfig:
    return cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(**fields)))


class TestSandboxes:
    def run(self, kubelet: Client, handler: str = "", **fields: Any) -> None:
        metadata = cri.PodSandboxMetadata(name="bad", uid="bad", namespace="e2e")
        config = cri.PodSandboxConfig(metadata=metadata, **fields) if "metadata" not in fields else cri.PodSandboxConfig(**fields)
        if not config.linux.cgroup_parent:
            config.linux.cgroup_parent = kubelet.cgroup_parent("bad")
        try:
            kubelet.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config, runtime_handler=handler))
        finally:
            assert kubelet.pods() == []

    def test_no_config(self, kubelet: Client) -> None:
        with refused(INVALID, "config.metadata.name"):
            kubelet.runtime.RunPodSandbox(cri.RunPodSandboxRequest())

    @pytest.mark.parametrize("name", HOSTILE_NAMES, ids=case_id)
    @pytest.mark.parametrize("field", ["name", "namespace", "uid"])
    def test_metadata(self, kubelet: Client, field: str, name: str) -> None:
        metadata = cri.PodSandboxMetadata(name="bad", uid="bad", namespace="e2e")
        setattr(metadata, field, name)
        with refused(INVALID, f"config.metadata.{field}"):
            self.run(kubelet, metadata=metadata)

    @pytest.mark.parametrize("handler", ["nope", "../runc", "a\0b", LONG], ids=case_id)
    def test_handler(self, kubelet: Client, handler: str) -> None:
        with refused(INVALID, "runtime_handler", repr(handler)[:20], "task"):
            self.run(kubelet, handler)

    @pytest.mark.parametrize("hostname", ["x" * 65, "a/b", "a\0b", "a\nb", "a b"], ids=case_id)
    def test_hostname(self, kubelet: Client, hostname: str) -> None:
        with refused(INVALID, "config.hostname", repr(hostname)):
            self.run(kubelet, hostname=hostname)

    @pytest.mark.parametrize("path", ["logs", "../logs", "/a\0b", "/a/../../etc", "/" + LONG], ids=case_id)
    def test_log_directory(self, kubelet: Client, path: str) -> None:
        with refused(INVALID, "config.log_directory"):
            self.run(kubelet, log_directory=path)

    @pytest.mark.parametrize(
        "parent", ["kubepods", "/a/../../b", "../x", "/a\0b", "/a\nb", "/..", "/" + LONG, "/a/../b.slice"], ids=case_id
    )
    def test_cgroup_parent(self, kubelet: Client, parent: str) -> None:
        with refused(INVALID, "config.linux.cgroup_parent"):
            self.run(kubelet, linux=cri.LinuxPodSandboxConfig(cgroup_parent=parent))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("kernel.panic", "1"),
            ("vm.swappiness", "1"),
            ("kernel.hostname", "x"),
            ("net..x", "1"),
            ("net.ipv4/../../kernel.panic", "1"),
            ("net/../kernel/panic", "1"),
            ("", "1"),
            ("net.core.somaxconn", "1\n2"),
            ("net.core.somaxconn", "many"),
            ("net.no.such.key", "1"),
            ("net.ipv4.conf.eth9.forwarding", "1"),
            ("kernel.msgmax", "-5x"),
        ],
        ids=case_id,
    )
    def test_sysctls(self, kubelet: Client, key: str, value: str) -> None:
        with refused(INVALID, "sysctl", key):
            self.run(kubelet, linux=cri.LinuxPodSandboxConfig(sysctls={key: value}))

    @pytest.mark.parametrize(
        ("key", "namespaces"),
        [
            ("net.core.somaxconn", {"network": cri.NODE}),
            ("kernel.shm_rmid_forced", {"ipc": cri.NODE}),
            ("fs.mqueue.msg_max", {"ipc": cri.NODE}),
        ],
    )
    def test_sysctls_of_the_hosts_namespaces(self, kubelet: Client, key: str, namespaces: dict[str, Any]) -> None:
        linux = options(pid=cri.CONTAINER, **namespaces)
        linux.sysctls[key] = "1"
        with refused(INVALID, "config.linux.sysctls", key, "host"):
            self.run(kubelet, linux=linux)

    @pytest.mark.parametrize(
        "fields",
        [
            {"pid": cri.TARGET},
            {"pid": 99},
            {"network": cri.CONTAINER, "pid": cri.CONTAINER},
            {"network": cri.TARGET, "pid": cri.CONTAINER},
            {"network": 99, "pid": cri.CONTAINER},
            {"ipc": cri.CONTAINER, "pid": cri.CONTAINER},
            {"ipc": 99, "pid": cri.CONTAINER},
            {"userns_options": cri.UserNamespace(mode=cri.POD), "pid": cri.CONTAINER},
            {"userns_options": cri.UserNamespace(mode=cri.TARGET), "pid": cri.CONTAINER},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_namespaces(self, kubelet: Client, fields: dict[str, Any]) -> None:
        with refused(INVALID, f"namespace_options.{next(iter(fields))}"):
            self.run(kubelet, linux=options(**fields))

    @pytest.mark.parametrize(
        "port",
        [
            cri.PortMapping(container_port=80, host_port=70000),
            cri.PortMapping(container_port=-1, host_port=8000),
            cri.PortMapping(container_port=80, host_port=8000, protocol=9),  # type: ignore[arg-type]  # not one of the enum
            cri.PortMapping(container_port=80, host_port=8000, host_ip="not an ip"),
        ],
        ids=["too large", "negative", "protocol", "address"],
    )
    def test_ports(self, kubelet: Client, port: cri.PortMapping) -> None:
        with refused(INVALID, "port"):
            self.run(kubelet, port_mappings=[port], linux=options(pid=cri.CONTAINER))

    @pytest.mark.parametrize("field", ["servers", "searches", "options"])
    @pytest.mark.parametrize("value", ["a\nnameserver 192.0.2.66", "a\0b", "a b"], ids=case_id)
    def test_dns(self, kubelet: Client, field: str, value: str) -> None:
        with refused(INVALID, f"config.dns_config.{field}", repr(value)):
            self.run(kubelet, dns_config=cri.DNSConfig(**{field: [value]}))

    def test_a_name_that_is_taken(self, kubelet: Client) -> None:
        pod = kubelet.run_pod()
        with refused(grpc.StatusCode.ALREADY_EXISTS, pod.config.metadata.name, pod.id):
            kubelet.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=pod.config))
        assert [item.id for item in kubelet.pods()] == [pod.id]

    @pytest.mark.field_fault("S1")
    def test_a_sandbox_image_that_is_not_there(self, kubelet: Client, shared_daemon: Daemon, pause: Path) -> None:
        shared_daemon.orlop("image", "rm", PAUSE)
        try:
            with refused(grpc.StatusCode.FAILED_PRECONDITION, PAUSE, "can't be pulled", "import"):
                self.run(kubelet, "task", linux=options(pid=cri.CONTAINER))
        finally:
            shared_daemon.orlop("image", "import", pause)


def secure(**fields: Any) -> dict[str, Any]:
    return {"linux": cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**fields))}


def limited(**fields: Any) -> dict[str, Any]:
    return {"linux": cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(**fields))}


def mount(**fields: Any) -> dict[str, Any]:
    return {"mounts": [cri.Mount(**{"host_path": "/tmp", "container_path": "/data", **fields})]}


def device(**fields: Any) -> dict[str, Any]:
    return {"devices": [cri.Device(**{"host_path": "/dev/null", "container_path": "/dev/x", "permissions": "rw", **fields})]}


def namespace(**fields: Any) -> dict[str, Any]:
    return secure(namespace_options=cri.NamespaceOption(**fields))


def capability(**fields: Any) -> dict[str, Any]:
    return secure(capabilities=cri.Capability(**fields))


def profile(kind: Any, reference: str = "") -> dict[str, Any]:
    return secure(seccomp=cri.SecurityProfile(profile_type=kind, localhost_ref=reference))


UID = cri.Int64Value(value=1)

CONTAINERS: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    ({"working_dir": "relative"}, INVALID, "config.working_dir 'relative'"),
    ({"working_dir": "/a\0b"}, INVALID, "working_dir"),
    ({"command": ["echo", "a\0b"]}, INVALID, "command: 'a\\x00b'"),
    ({"args": ["a\0b"]}, INVALID, "command: 'a\\x00b'"),
    ({"envs": [cri.KeyValue(key="", value=b"x")]}, INVALID, "config.envs"),
    ({"envs": [cri.KeyValue(key="A=B", value=b"x")]}, INVALID, "'A=B'"),
    ({"envs": [cri.KeyValue(key="A", value=b"a\0b")]}, INVALID, "'A'"),
    ({"stop_signal": 999}, INVALID, "config.stop_signal 999"),
    ({"CDI_devices": [cri.CDIDevice(name="vendor.com/net=nic0")]}, INVALID, "CDI_devices"),
    ({"log_path": "../escape"}, INVALID, "config.log_path '../escape'"),
    ({"log_path": "/absolute"}, INVALID, "config.log_path '/absolute'"),
    ({"log_path": "a\0b"}, INVALID, "config.log_path"),
    ({"log_path": LONG}, INVALID, "config.log_path"),
    (capability(add_capabilities=["SUPERPOWER"]), INVALID, "add_capabilities: 'SUPERPOWER'"),
    (capability(drop_capabilities=["NET_ADMIN\0"]), INVALID, "drop_capabilities"),
    (capability(add_ambient_capabilities=[""]), INVALID, "add_ambient_capabilities: ''"),
    (device(host_path="/dev/not/there"), NOT_FOUND, "'/dev/not/there'"),
    (device(host_path="/etc/passwd"), INVALID, "'/etc/passwd' is not a device"),
    (device(host_path="null"), INVALID, "'null'"),
    (device(host_path="/dev/a\0b"), INVALID, "host_path"),
    (device(permissions="rwx"), INVALID, "permissions 'rwx'"),
    (device(container_path="dev/x"), INVALID, "'dev/x'"),
    (mount(host_path="/not/there"), NOT_FOUND, "'/not/there'"),
    (mount(host_path=""), INVALID, "host_path"),
    (mount(host_path="tmp"), INVALID, "host_path 'tmp'"),
    (mount(host_path="/tmp\0"), INVALID, "host_path"),
    (mount(host_path="/" + LONG), NOT_FOUND, "host_path"),
    (mount(container_path=""), INVALID, "container_path"),
    (mount(container_path="data"), INVALID, "'data'"),
    (mount(container_path="/"), INVALID, "container_path"),
    (mount(container_path="/a/.."), INVALID, "container_path"),
    (mount(container_path="/a\0b"), INVALID, "container_path"),
    (mount(propagation=99), INVALID, "propagation 99"),
    (mount(recursive_read_only=True), INVALID, "recursive_read_only"),
    (mount(readonly=True, recursive_read_only=True, propagation=cri.PROPAGATION_BIDIRECTIONAL), INVALID, "recursive_read_only"),
    (mount(mount_options=["suid"]), INVALID, "suid"),
    (mount(uidMappings=[cri.IDMapping(length=1)]), INVALID, "config.mounts['/data']"),
    (mount(image=cri.ImageSpec(image=BUSYBOX), host_path=""), INVALID, "config.mounts['/data']"),
    (secure(run_as_username="nosuchuser"), NOT_FOUND, "'nosuchuser'"),
    (secure(run_as_user=cri.Int64Value(value=-1)), INVALID, "run_as_user -1"),
    (secure(run_as_user=cri.Int64Value(value=2**40)), INVALID, f"run_as_user {2**40}"),
    (secure(run_as_group=UID), INVALID, "run_as_group"),
    (secure(run_as_user=UID, run_as_group=cri.Int64Value(value=-5)), INVALID, "run_as_group -5"),
    (secure(supplemental_groups=[-1]), INVALID, "supplemental_groups -1"),
    (secure(supplemental_groups_policy=99), INVALID, "supplemental_groups_policy 99"),
    (profile(99), INVALID, "profile_type 99"),
    (profile(cri.SecurityProfile.Localhost, "relative.json"), INVALID, "'relative.json'"),
    (profile(cri.SecurityProfile.Localhost, "/not/there.json"), NOT_FOUND, "'/not/there.json'"),
    (profile(cri.SecurityProfile.Localhost, "/etc/passwd"), INVALID, "'/etc/passwd'"),
    (profile(cri.SecurityProfile.Localhost, "/etc"), INVALID, "'/etc'"),
    (secure(apparmor=cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="x")), INVALID, "apparmor"),
    (namespace(pid=cri.POD), INVALID, "namespace_options.pid is POD"),
    (namespace(pid=99), INVALID, "namespace_options.pid"),
    (namespace(pid=cri.TARGET, target_id="0" * 64), NOT_FOUND, "0" * 64),
    (namespace(pid=cri.TARGET), INVALID, "target_id"),
    (limited(cpu_period=-1), INVALID, "cpu_period -1"),
    (limited(cpu_shares=-1), INVALID, "cpu_shares -1"),
    (limited(memory_limit_in_bytes=-1), INVALID, "memory"),
    (limited(memory_limit_in_bytes=1 << 20), INVALID, f"memory_limit_in_bytes {1 << 20}"),
    (limited(oom_score_adj=1001), INVALID, "oom_score_adj 1001"),
    (limited(unified={"../../x": "1"}), INVALID, "unified"),
]  # fmt: skip


class TestContainers:
    def create(self, kubelet: Client, pod: Pod | str, **fields: Any) -> str:
        """Bare, without the client's helpful defaults."""
        fields.setdefault("metadata", cri.ContainerMetadata(name="bad"))
        fields.setdefault("image", cri.ImageSpec(image=BUSYBOX))
        config = cri.ContainerConfig(**fields)
        if not config.linux.security_context.HasField("namespace_options"):
            config.linux.security_context.namespace_options.pid = cri.CONTAINER
        sandbox = cri.PodSandboxConfig() if isinstance(pod, str) else pod.config
        request = cri.CreateContainerRequest(pod_sandbox_id=pod if isinstance(pod, str) else pod.id, config=config, sandbox_config=sandbox)
        try:
            answer: cri.CreateContainerResponse = kubelet.runtime.CreateContainer(request)
        except grpc.RpcError:
            assert kubelet.containers() == []
            raise
        return answer.container_id

    def test_config(self, kubelet: Client, pod: Pod) -> None:
        """In one pod, for the time that pods take."""
        for fields, code, words in CONTAINERS:
            with refused(code, words):
                self.create(kubelet, pod, **fields)

    def test_no_config(self, kubelet: Client, pod: Pod) -> None:
        with refused(INVALID, "config.metadata.name"):
            kubelet.runtime.CreateContainer(cri.CreateContainerRequest(pod_sandbox_id=pod.id))

    def test_names(self, kubelet: Client, pod: Pod) -> None:
        for name in HOSTILE_NAMES:
            with refused(INVALID, "config.metadata.name"):
                self.create(kubelet, pod, metadata=cri.ContainerMetadata(name=name))
            with refused(NOT_FOUND, repr(name)[:50]):
                self.create(kubelet, name)

    def test_an_image_that_is_not_there(self, kubelet: Client, pod: Pod) -> None:
        for name in ("orlop.test/none:latest", "sha256:" + "0" * 64, "UPPER/case", "a b", "../x", "a\0b", LONG):
            image = cri.ImageSpec(image=name)
            with refused(NOT_FOUND, repr(name)[:50]):
                self.create(kubelet, pod, image=image)
            assert not kubelet.images.ImageStatus(cri.ImageStatusRequest(image=image)).HasField("image")
            kubelet.images.RemoveImage(cri.RemoveImageRequest(image=image))

    def test_no_image(self, kubelet: Client, pod: Pod) -> None:
        with refused(INVALID, "image.image"):
            self.create(kubelet, pod, image=cri.ImageSpec())
        with refused(INVALID, "image.image"):
            kubelet.images.ImageStatus(cri.ImageStatusRequest())
        with refused(INVALID, "image.image"):
            kubelet.images.RemoveImage(cri.RemoveImageRequest())

    def test_nothing_to_run(self, kubelet: Client, pod: Pod, shared_daemon: Daemon, tmp_path: Path) -> None:
        shared_daemon.orlop("image", "import", busybox_image(tmp_path / "idle.tar", "orlop.test/idle:latest", {"Cmd": []}))
        try:
            with refused(INVALID, "config.command", "nothing to run"):
                self.create(kubelet, pod, image=cri.ImageSpec(image="orlop.test/idle:latest"))
        finally:
            shared_daemon.orlop("image", "rm", "orlop.test/idle:latest")

    def test_propagation_from_a_private_mount(self, kubelet: Client, pod: Pod, tmp_path: Path) -> None:
        (tmp_path / "private").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "--make-private", "e2e", tmp_path / "private"], check=True)
        try:
            for propagation, word in ((cri.PROPAGATION_HOST_TO_CONTAINER, "HOST_TO"), (cri.PROPAGATION_BIDIRECTIONAL, "BIDIRECTIONAL")):
                with refused(INVALID, str(tmp_path / "private"), word):
                    self.create(kubelet, pod, **mount(host_path=str(tmp_path / "private"), propagation=propagation))
        finally:
            subprocess.run(["umount", tmp_path / "private"], check=True)

    def test_a_device_that_is_a_socket(self, kubelet: Client, pod: Pod, tmp_path: Path) -> None:
        os.mknod(tmp_path / "socket", 0o600 | stat.S_IFSOCK)
        with refused(INVALID, "not a device"):
            self.create(kubelet, pod, **device(host_path=str(tmp_path / "socket")))

    def test_unified_without_cgroup_v2(self, kubelet: Client, pod: Pod) -> None:
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            kubelet.remove(self.create(kubelet, pod, **limited(unified={"memory.high": "100000000"})))
        else:
            with refused(INVALID, "unified", "v2"):
                self.create(kubelet, pod, **limited(unified={"memory.high": "100000000"}))

    def test_a_name_that_is_taken(self, kubelet: Client, pod: Pod) -> None:
        container = kubelet.create_container(pod, name="app")
        with refused(grpc.StatusCode.ALREADY_EXISTS, "app", container):
            kubelet.create_container(pod, name="app")
        assert [item.id for item in kubelet.containers()] == [container]

    def test_a_log_directory_that_is_not_there(self, kubelet: Client) -> None:
        pod = kubelet.run_pod(log_directory=Path("/run/not/there"))
        container = kubelet.create_container(pod)
        with refused(NOT_FOUND, "/run/not/there"):
            kubelet.start(container)
        status = kubelet.status(container)
        assert (status.state, status.reason) == (cri.CONTAINER_EXITED, "StartError")

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            (limited(cpuset_cpus="none"), "none"),
            (limited(cpuset_cpus="4000"), "4000"),
            ({"command": ["/etc/passwd"]}, "/etc/passwd"),
            ({"working_dir": "/bin/busybox/x"}, "x"),
        ],
        ids=["cpuset", "cpu", "not executable", "working_dir"],
    )
    def test_what_only_the_engine_refuses(self, kubelet: Client, pod: Pod, fields: dict[str, Any], words: str) -> None:
        container = self.create(kubelet, pod, **fields)
        with refused(grpc.StatusCode.UNKNOWN):
            kubelet.start(container)
        status = kubelet.status(container)
        assert (status.state, status.reason, status.exit_code) == (cri.CONTAINER_EXITED, "StartError", 128)
        assert status.message
        assert kubelet.status(kubelet.run_container(pod)).state == cri.CONTAINER_RUNNING


def raw(kubelet: Client, path: str, data: bytes) -> None:
    call: Callable[..., Any] = kubelet.channel.unary_unary(path)
    call(data, timeout=5)


class TestCalls:
    def test_times(self, kubelet: Client, pod: Pod) -> None:
        container = kubelet.run_container(pod)
        with refused(INVALID, "timeout -1"):
            kubelet.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=-1))
        with refused(INVALID, "timeout -1"):
            kubelet.runtime.ExecSync(cri.ExecSyncRequest(container_id=container, cmd=["true"], timeout=-1))
        forever = 2**63 - 1
        answer = kubelet.runtime.ExecSync(cri.ExecSyncRequest(container_id=container, cmd=["echo", "fine"], timeout=forever))
        assert answer.stdout == b"fine\n"
        stopping = kubelet.channel.unary_unary(
            "/runtime.v1.RuntimeService/StopContainer",
            request_serializer=cri.StopContainerRequest.SerializeToString,
            response_deserializer=cri.StopContainerResponse.FromString,
        ).future(cri.StopContainerRequest(container_id=container, timeout=forever))
        kubelet.stop(container)
        stopping.result(timeout=5)

    @pytest.mark.parametrize(("command", "words"), [([], "cmd"), ([""], "cmd"), (["a\0b"], "cmd")], ids=["none", "empty", "NUL"])
    def test_commands(self, kubelet: Client, pod: Pod, command: list[str], words: str) -> None:
        container = kubelet.run_container(pod)
        with refused(INVALID, words):
            kubelet.exec_sync(container, *command)

    def test_what_is_not_there_yet(self, kubelet: Client) -> None:
        """UNIMPLEMENTED with the method's name, streams as well; the kubelet falls back where it can."""
        told: dict[str, str] = {}
        for service, calls in (("RuntimeService", kubelet.runtime), ("ImageService", kubelet.images)):
            for method in cri.DESCRIPTOR.services_by_name[service].methods:
                try:
                    answer = getattr(calls, method.name)(getattr(cri, method.input_type.name)(), timeout=1)
                    if method.server_streaming:
                        next(answer, None)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        told[f"runtime.v1.{service}.{method.name}"] = error.details() or ""
        assert told == {name: f"{name} is not implemented by orlop" for name in told}

    def test_methods_that_do_not_exist(self, kubelet: Client) -> None:
        for path in ("/runtime.v1.RuntimeService/Nope", "/runtime.v1alpha2.RuntimeService/Version", "/x/y"):
            with refused(grpc.StatusCode.UNIMPLEMENTED):
                raw(kubelet, path, b"")

    @pytest.mark.parametrize("data", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe"], ids=["junk", "length", "text"])
    def test_messages_that_are_none(self, kubelet: Client, data: bytes) -> None:
        for method in ("RunPodSandbox", "StopContainer", "ListContainers"):
            with pytest.raises(grpc.RpcError) as failure:
                raw(kubelet, f"/runtime.v1.RuntimeService/{method}", data)
            assert failure.value.code() is INVALID
            assert f"not a {method}Request" in (failure.value.details() or "")

    def test_a_message_that_is_too_large(self, kubelet: Client) -> None:
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            kubelet.stop("x" * (17 << 20))

    def test_what_is_no_grpc_at_all(self, shared_daemon: Daemon) -> None:
        for talk in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b""):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(shared_daemon.socket))
                stranger.sendall(talk)

    def test_the_socket_is_roots(self, shared_daemon: Daemon) -> None:
        assert stat.S_IMODE(shared_daemon.socket.stat().st_mode) == 0o600


def test_each_is_refused_while_others_run(kubelet: Client, pod: Pod) -> None:
    """A mixed load of good and bad: the good ones don't notice."""
    container = kubelet.run_container(pod)
    bad: list[Callable[[], Any]] = [
        lambda: kubelet.runtime.RunPodSandbox(cri.RunPodSandboxRequest()),
        lambda: kubelet.create_container(pod, image="orlop.test/none:latest"),
        lambda: kubelet.exec_sync("nope", "true"),
        lambda: kubelet.start(container),
    ]
    for call in bad * 3:
        with pytest.raises(grpc.RpcError):
            call()
        assert kubelet.exec_sync(container, "echo", "fine").stdout == b"fine\n"
