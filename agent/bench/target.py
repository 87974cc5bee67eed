"""One socket under test: its calls, timed, and the pods that are made through it, as a kubelet makes them.

All that is made carries the run's label, by which it is found and removed again, whatever else went wrong.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from agent.aio import in_thread, together
from agent.bench.plan import Plan
from agent.bench.results import Results
from agent.bench.stack import Stack
from agent.errdefs import InvalidArgument, OrlopError, Unimplemented
from agent.linux.cgroups import Cgroups
from cri.api import api_pb2 as cri
from cri.client import Client

LABEL = "orlop.bench/run"
NAMESPACE = "orlop-bench"
GRACE = 10
"""Seconds that a container has after SIGTERM. The bench's own end at once; one that doesn't shows."""
IDLE = ("sh", "-c", 'trap "exit 0" TERM; sleep 1000000 & wait')
"""A container that does nothing, and ends when it is asked to."""
_CALL_BUDGET = 120.0
_REMOVAL_TRIES = 3
_AT_A_TIME = 8


@dataclass
class Pod:
    """A sandbox, its configuration, which each CreateContainer repeats, and its containers' ids."""

    config: cri.PodSandboxConfig
    id: str = ""
    containers: list[str] = field(default_factory=list)


class Target:
    """`async with Target(...) as target`; at its end everything that it made is gone. `name` is what the report calls it."""

    def __init__(self, socket: str, plan: Plan, connect: Callable[[str], Client] = Client, cgroups: Cgroups | None = None) -> None:
        """`connect` and `cgroups` are others in tests only."""
        self.client = connect(socket)
        self.socket = self.client.socket
        self.plan = plan
        self.name = self.socket
        self.run = uuid.uuid4().hex[:8]
        self.results = Results([], [])
        self.stack = Stack(self.socket)
        self.parent = ""
        """Cgroup of all its pods: a path, or a slice of systemd's."""
        self.images: set[str] = set()
        """Those that were pulled here."""
        self._connect = connect
        self._cgroups = cgroups or Cgroups()
        self._count = itertools.count(1)

    async def __aenter__(self) -> Target:
        """Ask who serves, and have the image.

        Raises:
            as Version and PullImage.
        """
        try:
            version = await self.call("Version", cri.VersionRequest())
            self.name = f"{version.runtime_name} {version.runtime_version}"
            self.parent = await self._pods_parent()
            if self.parent.startswith("/"):
                await self._cgroups.create(self.parent)
            self.stack = Stack(self.socket, self.plan.cgroups.get(self.socket, ()), pods=self.parent)
            if not await self.has_image(self.plan.image):
                await self.pull(self.plan.image, ours=True)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.remove_all()
        finally:
            await self._leave()

    async def reconnect(self) -> None:
        """After a restart of the daemon: a connection that was lost is not tried again for a while."""
        await self.client.__aexit__(None, None, None)
        self.client = self._connect(self.socket)

    async def call(self, method: str, request: Message) -> Any:
        """A call that is waited for even if we are cancelled: only then is it known what there is to clean up. Raises OrlopError."""
        calling = asyncio.ensure_future(self.client.call(method, request, timeout=_CALL_BUDGET))
        try:
            return await asyncio.shield(calling)
        except asyncio.CancelledError:
            with suppress(OrlopError):
                await calling
            raise

    async def timed(self, method: str, request: Message) -> tuple[float, Any]:
        """The seconds that a call took, and its response. They become a sample of the measurement of that name."""
        started = time.perf_counter()
        answer = await self.call(method, request)
        seconds = time.perf_counter() - started
        self.results.add(method, self.name, seconds)
        return seconds, answer

    def add(self, key: str, value: float) -> None:
        """A sample of ours."""
        self.results.add(key, self.name, value)

    async def has_image(self, image: str) -> bool:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=image))
        return bool((await self.call("ImageStatus", request)).image.id)

    async def pull(self, image: str, *, ours: bool) -> None:
        """Pull an image; if it is `ours` it is removed at the end."""
        if ours:
            self.images.add(image)
        await self.call("PullImage", cri.PullImageRequest(image=cri.ImageSpec(image=image)))

    def pod(self) -> Pod:
        """A pod that isn't there yet, with what a kubelet fills in."""
        uid, name = str(uuid.uuid4()), f"bench-{self.run}-{next(self._count)}"
        network = cri.NODE if self.plan.host_network else cri.POD
        namespaces = cri.NamespaceOption(network=network, pid=cri.CONTAINER, ipc=cri.POD)
        return Pod(
            cri.PodSandboxConfig(
                metadata=cri.PodSandboxMetadata(name=name, namespace=NAMESPACE, uid=uid),
                hostname="" if self.plan.host_network else name,
                log_directory=str(self.plan.log_root / f"{NAMESPACE}_{name}_{uid}"),
                labels={
                    LABEL: self.run,
                    "io.kubernetes.pod.name": name,
                    "io.kubernetes.pod.namespace": NAMESPACE,
                    "io.kubernetes.pod.uid": uid,
                },
                linux=cri.LinuxPodSandboxConfig(
                    cgroup_parent=_child(self.parent, f"pod{uid}"),
                    security_context=cri.LinuxSandboxSecurityContext(namespace_options=namespaces),
                ),
            )
        )

    def sandbox_request(self, pod: Pod) -> cri.RunPodSandboxRequest:
        return cri.RunPodSandboxRequest(config=pod.config, runtime_handler=self.plan.handler)

    def container_request(
        self, pod: Pod, name: str = "app", command: Sequence[str] = IDLE, mounts: Sequence[cri.Mount] = ()
    ) -> cri.CreateContainerRequest:
        container = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=self.plan.image),
            command=command,
            labels={**pod.config.labels, "io.kubernetes.container.name": name},
            log_path=f"{name}/0.log",
            mounts=mounts,
        )
        container.linux.security_context.namespace_options.CopyFrom(pod.config.linux.security_context.namespace_options)
        return cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=container, sandbox_config=pod.config)

    async def make_log_directories(self, pod: Pod, *names: str) -> None:
        """As the kubelet does before it starts a container."""
        for name in names or ("app",):
            await in_thread((Path(pod.config.log_directory) / name).mkdir, parents=True, exist_ok=True)

    async def start(self, containers: int = 1) -> Pod:
        """A pod whose containers run, untimed."""
        pod = self.pod()
        names = [f"app-{number}" for number in range(containers)] if containers > 1 else ["app"]
        await self.make_log_directories(pod, *names)
        pod.id = (await self.call("RunPodSandbox", self.sandbox_request(pod))).pod_sandbox_id
        for name in names:
            pod.containers.append((await self.call("CreateContainer", self.container_request(pod, name))).container_id)
            await self.call("StartContainer", cri.StartContainerRequest(container_id=pod.containers[-1]))
        return pod

    async def end(self, pod: Pod) -> None:
        """Stop and remove a pod, untimed: what a kubelet does with one that is deleted."""
        stops = [cri.StopContainerRequest(container_id=container, timeout=GRACE) for container in pod.containers]
        await together(*(self.call("StopContainer", stop) for stop in stops))
        await self.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        for container in pod.containers:
            await self.call("RemoveContainer", cri.RemoveContainerRequest(container_id=container))
        await self.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
        await self.forget(pod)

    async def forget(self, pod: Pod) -> None:
        """Remove what a kubelet makes for a pod, and so removes: its logs and its cgroup."""
        await in_thread(shutil.rmtree, pod.config.log_directory, ignore_errors=True)
        if self.parent.startswith("/"):
            await self._cgroups.remove(pod.config.linux.cgroup_parent)

    async def remove_all(self) -> None:
        """Remove every pod of this run that the socket lists.

        Raises:
            OrlopError: some could not be removed; names them.
        """
        only_ours = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(label_selector={LABEL: self.run}))
        for attempt in range(_REMOVAL_TRIES):
            sandboxes = (await self.call("ListPodSandbox", only_ours)).items
            if not sandboxes:
                break
            gate = asyncio.Semaphore(_AT_A_TIME)
            try:
                await together(*(self._remove(gate, sandbox.id) for sandbox in sandboxes))
            except OrlopError as error:
                error.add_note(f"{self.name}: pods labelled {LABEL}={self.run} may be left")
                if attempt == _REMOVAL_TRIES - 1:
                    raise
        await in_thread(self._remove_logs)

    async def _remove(self, gate: asyncio.Semaphore, sandbox: str) -> None:
        async with gate:
            only_its = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=sandbox))
            for container in (await self.call("ListContainers", only_its)).containers:
                await self.call("StopContainer", cri.StopContainerRequest(container_id=container.id, timeout=0))
            await self.call("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox))
            await self.call("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox))

    def _remove_logs(self) -> None:
        for directory in self.plan.log_root.glob(f"{NAMESPACE}_bench-{self.run}-*"):
            shutil.rmtree(directory, ignore_errors=True)

    async def _pods_parent(self) -> str:
        """By the runtime's cgroup driver; runtimes too old to say which it is use cgroupfs unless they are told otherwise."""
        given, driver = self.plan.cgroup_parent, cri.CGROUPFS
        if not given:
            with suppress(Unimplemented):
                driver = (await self.call("RuntimeConfig", cri.RuntimeConfigRequest())).linux.cgroup_driver
        if given.endswith(".slice") or driver == cri.SYSTEMD:
            return _child(given or "orlopbench.slice", self.run)
        if given and not given.startswith("/"):
            raise InvalidArgument(f"--cgroup-parent {given!r} is neither an absolute path (cgroupfs) nor a slice (systemd)")
        return _child(given.rstrip("/"), f"orlop-bench-{self.run}")

    async def _leave(self) -> None:
        async with AsyncExitStack() as stack:  # each of these, whatever becomes of the others
            stack.push_async_exit(self.client.__aexit__)
            if self.parent.startswith("/"):
                stack.push_async_callback(self._cgroups.remove, self.parent)
            for image in self.images:
                stack.push_async_callback(self.call, "RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))


def _child(parent: str, name: str) -> str:
    """The cgroup `name` below another one: a path, or a slice, whose name says where it is (systemd.slice(5))."""
    if parent.endswith(".slice"):
        return f"{parent.removesuffix('.slice')}-{name.replace('-', '_')}.slice"
    return f"{parent}/{name}"
