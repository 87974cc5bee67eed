"""A kubelet of a few lines: the CRI over a unix socket, with the defaults that the kubelet fills in.

On purpose not `cri.client`: the tests see what any client sees. Calls are synchronous; a failed one raises grpc.RpcError.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from cri.api import admin_pb2 as admin
from cri.api import api_pb2 as cri
from tests.e2e.node import CGROUP_PARENT

CALL_BUDGET = 60  # seconds; the kubelet gives 120
MAX_MESSAGE = 16 << 20  # bytes that the kubelet takes
CHANNEL = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 50),  # so that a daemon that is back is not waited for any longer
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
]
BUSYBOX = "orlop.test/busybox:latest"

T = TypeVar("T")
_numbers = itertools.count(1)


class Service:
    """The methods of one gRPC service as callables: `service.Version(VersionRequest())`; `timeout=` in seconds."""

    def __init__(self, channel: grpc.Channel, descriptor: ServiceDescriptor) -> None:
        self._methods: dict[str, Callable[..., Any]] = {}
        for method in descriptor.methods:
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            self._methods[method.name] = make(
                f"/{descriptor.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = self._methods[name]

        def call(request: Any, timeout: float = CALL_BUDGET) -> Any:
            return method(request, timeout=timeout)

        return call


@dataclass(frozen=True)
class Pod:
    """A sandbox and the configuration that each CreateContainer repeats."""

    id: str
    config: cri.PodSandboxConfig


@dataclass(frozen=True)
class LogLine:
    """One entry of a CRI log file; `whole` is false for a part of a line that goes on in the next entry."""

    time: datetime
    stream: str
    whole: bool
    text: str


class Client:
    """Both CRI services of one daemon, and helpers for what most tests do."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix://{socket}", options=CHANNEL)
        services = cri.DESCRIPTOR.services_by_name
        self.runtime = Service(self.channel, services["RuntimeService"])
        self.images = Service(self.channel, services["ImageService"])
        self.admin = Service(self.channel, admin.DESCRIPTOR.services_by_name["Admin"])

    def close(self) -> None:
        self.channel.close()

    def run_pod(
        self,
        name: str = "",
        *,
        handler: str = "",
        log_directory: Path | None = None,
        namespaces: cri.NamespaceOption | None = None,
        **config: Any,
    ) -> Pod:
        """RunPodSandbox; as `pod_config`."""
        return self.run_again(self.pod_config(name, log_directory=log_directory, namespaces=namespaces, **config), handler=handler)

    def run_again(self, config: cri.PodSandboxConfig, *, handler: str = "") -> Pod:
        """RunPodSandbox with a configuration that was perhaps tried before."""
        answer = self.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config, runtime_handler=handler))
        return Pod(answer.pod_sandbox_id, config)

    def pod_config(
        self, name: str = "", *, log_directory: Path | None = None, namespaces: cri.NamespaceOption | None = None, **config: Any
    ) -> cri.PodSandboxConfig:
        """A pod below this run's cgroup; `config` are further fields of PodSandboxConfig."""
        uid = str(uuid.uuid4())
        linux = cri.LinuxPodSandboxConfig(
            cgroup_parent=self.cgroup_parent(uid),
            security_context=cri.LinuxSandboxSecurityContext(namespace_options=namespaces or pod_namespaces()),
        )
        config.setdefault("linux", cri.LinuxPodSandboxConfig()).MergeFrom(linux)
        return cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name or f"pod-{next(_numbers)}", uid=uid, namespace="e2e", attempt=0),
            log_directory=str(log_directory or ""),
            **config,
        )

    def cgroup_parent(self, uid: str) -> str:
        """Of a pod, as the kubelet's cgroupfs or systemd driver would name it, below this run's cgroup."""
        if not CGROUP_PARENT.endswith(".slice"):
            return f"{CGROUP_PARENT}/pod{uid}"
        return f"{CGROUP_PARENT}{CGROUP_PARENT.removesuffix('.slice')}-pod{uid.replace('-', '_')}.slice"

    def create_container(
        self,
        pod: Pod,
        command: Sequence[str] = ("sleep", "1000000"),
        *,
        name: str = "",
        image: str = BUSYBOX,
        attempt: int = 0,
        env: Mapping[str, bytes] | None = None,
        **config: Any,
    ) -> str:
        """CreateContainer; `config` are further fields of ContainerConfig. Returns the id."""
        name = name or f"container-{next(_numbers)}"
        container = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name, attempt=attempt),
            image=cri.ImageSpec(image=image),
            command=command,
            envs=[cri.KeyValue(key=key, value=value) for key, value in (env or {}).items()],
            log_path=f"{name}_{attempt}.log" if pod.config.log_directory else "",
            **config,
        )
        if not container.linux.security_context.HasField("namespace_options"):
            container.linux.security_context.namespace_options.CopyFrom(pod.config.linux.security_context.namespace_options)
        request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=container, sandbox_config=pod.config)
        answer: cri.CreateContainerResponse = self.runtime.CreateContainer(request)
        return answer.container_id

    def start(self, container: str) -> None:
        self.runtime.StartContainer(cri.StartContainerRequest(container_id=container))

    def run_container(self, pod: Pod, command: Sequence[str] = ("sleep", "1000000"), **config: Any) -> str:
        """CreateContainer and StartContainer."""
        container = self.create_container(pod, command, **config)
        self.start(container)
        return container

    def stop(self, container: str, grace: int = 0) -> None:
        self.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=grace), timeout=CALL_BUDGET + grace)

    def remove(self, container: str) -> None:
        self.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container))

    def stop_pod(self, pod: Pod | str) -> None:
        self.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod if isinstance(pod, str) else pod.id))

    def remove_pod(self, pod: Pod | str) -> None:
        self.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod if isinstance(pod, str) else pod.id))

    def remove_all(self) -> None:
        """Stops and removes every pod that the daemon lists."""
        for pod in self.pods():
            self.stop_pod(pod.id)
            self.remove_pod(pod.id)

    def pods(self) -> list[cri.PodSandbox]:
        return list(self.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items)

    def containers(self) -> list[cri.Container]:
        return list(self.runtime.ListContainers(cri.ListContainersRequest()).containers)

    def pod_status(self, pod: Pod) -> cri.PodSandboxStatus:
        answer: cri.PodSandboxStatusResponse = self.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
        return answer.status

    def status(self, container: str) -> cri.ContainerStatus:
        answer: cri.ContainerStatusResponse = self.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container))
        return answer.status

    def wait_exit(self, container: str, within: float = 30) -> cri.ContainerStatus:
        """Asks for the status until it is EXITED, as the kubelet does."""
        return until(
            lambda: status if (status := self.status(container)).state == cri.CONTAINER_EXITED else None,
            what=f"container {container} has exited",
            within=within,
        )

    def exec_sync(self, container: str, *command: str, timeout: int = 30) -> cri.ExecSyncResponse:
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        answer: cri.ExecSyncResponse = self.runtime.ExecSync(request, timeout=CALL_BUDGET + timeout)
        return answer

    def pull_image(self, name: str) -> str:
        """PullImage; the id."""
        answer: cri.PullImageResponse = self.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=name)))
        return answer.image_ref

    def remove_image(self, name: str) -> None:
        self.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))

    def image_id(self, name: str) -> str:
        """The id of the image that is known by `name`; "" if there is none."""
        answer: cri.ImageStatusResponse = self.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name)))
        return answer.image.id

    def ledger(self) -> list[admin.Resource]:
        """Every external resource that the agent owns, or may own."""
        return list(self.admin.Ledger(admin.LedgerRequest()).resources)

    def logs(self, container: str) -> list[LogLine]:
        """What the container's log file holds by now."""
        return [parse_log(line) for line in Path(self.status(container).log_path).read_text().splitlines()]


def pod_namespaces() -> cri.NamespaceOption:
    """What the kubelet asks for unless the pod says otherwise: a PID namespace for each container, the rest shared by the pod."""
    return cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD)


def parse_log(line: str) -> LogLine:
    """One line of the CRI log format: `TIME STREAM P|F TEXT`."""
    moment, stream, tag, text = line.split(" ", 3)
    assert stream in ("stdout", "stderr"), line
    assert tag in ("P", "F"), line
    return LogLine(datetime.fromisoformat(moment), stream, tag == "F", text)


def until(condition: Callable[[], T | None], *, what: str, within: float = 30, detail: Callable[[], object] = str) -> T:
    """The first result of `condition` that isn't None or False, asked for again and again; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"after {within} s it still isn't so that {what} {detail()}")
        time.sleep(0.02)
    return result


@contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    """The call inside fails with `code`, and all of `words` are in its message."""
    with pytest.raises(grpc.RpcError) as failure:
        yield
    assert failure.value.code() is code, failure.value
    missing = [word for word in words if word not in (failure.value.details() or "")]
    assert not missing, f"{missing} not in {failure.value.details()!r}"
