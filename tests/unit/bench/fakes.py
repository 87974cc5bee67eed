"""A runtime that is a dictionary, behind `Client.call`; it takes no time, keeps what is called, and fails where it is told to."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from agent.bench.plan import Plan
from agent.bench.target import Target
from agent.errdefs import NotFound, OrlopError, Unimplemented
from agent.linux.cgroups import Cgroups
from cri.api import api_pb2 as cri
from cri.client import Client


class FakeRuntime(Client):
    """`failures`: what a method raises. `held`: methods that answer only when the event is set, though they act at once."""

    def __init__(self, name: str = "fake", driver: cri.CgroupDriver = cri.CGROUPFS) -> None:
        self.socket = f"/nowhere/{name}.sock"
        self.name = name
        self.driver = driver
        self.calls: list[tuple[str, Any]] = []
        self.failures: dict[str, OrlopError] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.images: set[str] = set()
        self.pods: dict[str, cri.PodSandboxConfig] = {}
        self.containers: dict[str, cri.CreateContainerRequest] = {}
        self._numbers = itertools.count(1)

    def named(self, method: str) -> list[Any]:
        """The requests of all calls of a method."""
        return [request for called, request in self.calls if called == method]

    async def __aexit__(self, *_: object) -> None:
        pass

    async def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        self.calls.append((method, request))
        await asyncio.sleep(0)
        if failure := self.failures.get(method):
            raise failure
        if (answer := getattr(self, method, None)) is None:
            raise Unimplemented(f"{method} is not implemented")
        result = answer(request)
        if event := self.held.get(method):
            await event.wait()
        return result

    def Version(self, request: Any) -> Any:
        return cri.VersionResponse(runtime_name=self.name, runtime_version="1")

    def RuntimeConfig(self, request: Any) -> Any:
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=self.driver))

    def ImageStatus(self, request: Any) -> Any:
        image = request.image.image
        return cri.ImageStatusResponse(image=cri.Image(id=f"sha256:{image}") if image in self.images else None)

    def PullImage(self, request: Any) -> Any:
        self.images.add(request.image.image)
        return cri.PullImageResponse(image_ref="sha256:x")

    def RemoveImage(self, request: Any) -> Any:
        self.images.discard(request.image.image)
        return cri.RemoveImageResponse()

    def RunPodSandbox(self, request: Any) -> Any:
        pod = f"pod-{next(self._numbers)}"
        self.pods[pod] = request.config
        return cri.RunPodSandboxResponse(pod_sandbox_id=pod)

    def CreateContainer(self, request: Any) -> Any:
        if request.pod_sandbox_id not in self.pods:
            raise NotFound(f"no sandbox {request.pod_sandbox_id!r}")
        container = f"container-{next(self._numbers)}"
        self.containers[container] = request
        return cri.CreateContainerResponse(container_id=container)

    def StartContainer(self, request: Any) -> Any:
        """One that prints a file of the host has it in its log at once."""
        given = self.containers[request.container_id]
        for mount in given.config.mounts:
            lines = Path(mount.host_path).read_bytes().splitlines(keepends=True)
            began = datetime.fromtimestamp(time.time() - 1, UTC).isoformat().encode()
            log = Path(given.sandbox_config.log_directory) / given.config.log_path
            log.write_bytes(b"".join(began + b" stdout F " + line for line in lines))
        return cri.StartContainerResponse()

    def StopContainer(self, request: Any) -> Any:
        return cri.StopContainerResponse()

    def RemoveContainer(self, request: Any) -> Any:
        self.containers.pop(request.container_id, None)
        return cri.RemoveContainerResponse()

    def StopPodSandbox(self, request: Any) -> Any:
        return cri.StopPodSandboxResponse()

    def RemovePodSandbox(self, request: Any) -> Any:
        self.pods.pop(request.pod_sandbox_id, None)
        self.containers = {
            name: given for name, given in self.containers.items() if given.pod_sandbox_id != request.pod_sandbox_id
        }  # fmt: skip
        return cri.RemovePodSandboxResponse()

    def ListPodSandbox(self, request: Any) -> Any:
        wanted = request.filter.label_selector
        shown = [name for name, config in self.pods.items() if all(config.labels.get(key) == value for key, value in wanted.items())]
        return cri.ListPodSandboxResponse(items=[cri.PodSandbox(id=name) for name in shown])

    def ListContainers(self, request: Any) -> Any:
        only = request.filter.pod_sandbox_id
        shown = [name for name, given in self.containers.items() if only in ("", given.pod_sandbox_id)]
        return cri.ListContainersResponse(containers=[cri.Container(id=name) for name in shown])

    def ExecSync(self, request: Any) -> Any:
        return cri.ExecSyncResponse()

    def PodSandboxStatus(self, request: Any) -> Any:
        return cri.PodSandboxStatusResponse()

    def ContainerStatus(self, request: Any) -> Any:
        return cri.ContainerStatusResponse(status=cri.ContainerStatus(state=cri.CONTAINER_EXITED))

    def Status(self, request: Any) -> Any:
        return cri.StatusResponse()


def makers(folder: Path, *runtimes: FakeRuntime) -> Callable[[str, Plan], Target]:
    """Instead of Target itself: targets that are these runtimes, with a cgroup tree in `folder`."""
    (folder / "cgroup").mkdir(exist_ok=True)
    (folder / "cgroup/cgroup.controllers").touch()
    by_socket = {runtime.socket: runtime for runtime in runtimes}
    return lambda socket, plan: Target(socket, plan, lambda path: by_socket[path], Cgroups(folder / "cgroup"))
