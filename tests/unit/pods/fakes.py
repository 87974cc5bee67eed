"""A `Pods` for verbs that need little of it: a registry on a store in memory, fake cgroups, and neither shims nor images."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from google.protobuf.any_pb2 import Any as AnyMessage

from agent.aio import KeyedLock, Supervisor
from agent.config.handlers import RuntimeHandler
from agent.errdefs import NotFound, OrlopError
from agent.pods import container_events
from agent.pods.container import ContainerRecord, ContainerState
from agent.pods.context import Pods
from agent.pods.event_feed import EventFeed
from agent.pods.facts import NodeFacts
from agent.pods.registry import Container, Registry, Sandbox
from agent.pods.sandbox import Pin, SandboxRecord
from agent.runtime.v2.features import HandlerFeatures
from agent.snapshots.snapshotter import Usage
from agent.stats import Sampler
from cri.api import api_pb2 as cri
from tests.unit.pods.specs import facts
from tests.unit.stats import trees

POD = "ab" * 32
APP = "cd" * 32
NET_DEV = b"h\nh\n lo: 1 1 1 0 0 0 0 0 1 1 1 0 0 0 0 0\n eth0: 100 2 3 0 0 0 0 0 400 5 6 0 0 0 0 0\nnet1: 7 0 0 0 0 0 0 0 8 0 0 0 0 0 0 0\n"


class MemoryStore:
    """Records in a dictionary."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        self.data[key] = data

    async def delete(self, key: str) -> None:
        self.data.pop(key, None)

    async def load(self) -> dict[str, bytes]:
        return dict(self.data)


class FakeTask:
    """A task whose shim says what the test wants; `error` instead of an answer."""

    def __init__(self) -> None:
        self.updates: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.answer = AnyMessage()
        self.error: OrlopError | None = None

    async def update(self, resources: dict[str, Any], annotations: Any) -> None:
        if self.error is not None:
            raise self.error
        self.updates.append((resources, dict(annotations)))

    async def stats(self) -> AnyMessage:
        if self.error is not None:
            raise self.error
        return self.answer


class FakeTasks:
    def __init__(self) -> None:
        self.tasks: dict[str, FakeTask] = {}

    def get(self, task_id: str) -> FakeTask:
        if task_id not in self.tasks:
            raise NotFound(f"there is no task {task_id}")
        return self.tasks[task_id]


class FakeImages:
    mountpoint = "/var/lib/orlop/snapshots"

    def __init__(self) -> None:
        self.usages: dict[str, Usage] = {}

    def usage(self, key: str) -> Usage | None:
        return self.usages.get(key)


class FakeNamespaces:
    """Every pin leads to a network with the counters NET_DEV, but those that are gone."""

    def __init__(self) -> None:
        self.gone: set[Path] = set()
        self.looked_at: list[Path] = []

    async def interface_counters(self, pins: list[Path]) -> list[bytes | None]:
        self.looked_at += pins
        return [None if pin in self.gone else NET_DEV for pin in pins]


@dataclass
class World:
    """What verbs get, as `pods`. The cgroups are below `root`, a v2 host."""

    root: Path
    tasks: FakeTasks = field(default_factory=FakeTasks)
    images: FakeImages = field(default_factory=FakeImages)
    namespaces: FakeNamespaces = field(default_factory=FakeNamespaces)
    registry: Registry = field(default_factory=lambda: Registry(MemoryStore(), MemoryStore()))
    handlers: dict[str, RuntimeHandler] = field(default_factory=lambda: {"runc": RuntimeHandler("runc")})
    features: dict[str, HandlerFeatures] = field(default_factory=lambda: {"runc": HandlerFeatures()})
    facts: NodeFacts = field(default_factory=lambda: facts(cgroup_v2=True))
    supervisor: Supervisor = field(default_factory=lambda: Supervisor("test"))
    locks: KeyedLock = field(default_factory=KeyedLock)
    events: EventFeed = field(default_factory=EventFeed)

    def __post_init__(self) -> None:
        trees.v2(self.root)
        self.stats = Sampler(trees.controllers(self.root))
        container_events.attach(self.pods)

    @property
    def pods(self) -> Pods:
        return cast(Pods, self)

    async def sandbox(self, sandbox_id: str = POD, **changes: Any) -> Sandbox:
        """A sandbox that is ready, with a cgroup and a network; `changes` of its record."""
        number = len(self.registry.sandboxes)
        metadata = cri.PodSandboxMetadata(name=f"web-{number}", namespace="default", uid=f"u{number}")
        labels = changes.pop("labels", {})
        fields: dict[str, Any] = {
            "id": sandbox_id,
            "config": cri.PodSandboxConfig(metadata=metadata, labels=labels, annotations={"note": "pod"}),
            "handler": "runc",
            "created_at": 17,
            "directory": "/run/orlop/sandboxes/x",
            "cgroup_parent": f"/kubepods/{sandbox_id}",
            "pins": {"network": Pin(f"/run/netns/{sandbox_id}", 1)},
            "ips": ("10.0.0.2", "fd00::2"),
        }
        live = Sandbox(SandboxRecord(**{**fields, **changes}))
        await self.registry.sandboxes.add(live)
        trees.fill(self.cgroup(live.record.cgroup_parent), trees.V2_FILES)
        return live

    async def container(self, container_id: str = APP, **changes: Any) -> Container:
        """A container that runs, in the cgroup that its record names; `changes` of its record."""
        sandbox_id = changes.get("sandbox_id", POD)
        path = f"/kubepods/{sandbox_id}/{container_id}"
        labels, resources = changes.pop("labels", {}), changes.pop("resources", cri.LinuxContainerResources())
        config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name=container_id), labels=labels, annotations={"note": "app"})
        config.linux.resources.CopyFrom(resources)
        fields: dict[str, Any] = {
            "id": container_id,
            "sandbox_id": sandbox_id,
            "config": config,
            "image_id": "sha256:" + "0" * 64,
            "image_name": "app:1",
            "spec": {"process": {"user": {}}, "linux": {"cgroupsPath": path, "resources": {"devices": [{"allow": False}]}}},
            "rootfs": (),
            "log_path": "",
            "created_at": 18,
            "stop_signal": 15,
            "state": ContainerState.RUNNING,
            "cgroups": {"": path},
        }
        live = Container(ContainerRecord(**{**fields, **changes}))
        await self.registry.containers.add(live)
        self.tasks.tasks[container_id] = FakeTask()
        trees.fill(self.cgroup(path), trees.V2_FILES)
        return live

    def cgroup(self, path: str) -> Path:
        return self.root / path.strip("/")

    def vanish(self, path: str) -> None:
        """The cgroup is removed, with those below."""
        shutil.rmtree(self.cgroup(path))
