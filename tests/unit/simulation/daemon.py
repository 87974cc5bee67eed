"""One incarnation of the daemon on a simulated node: its parts, put together as `agent.daemon.serve` does, and its death.

`crash()` is a SIGKILL: from that moment on nothing that it does reaches the node. `buried()` then lets its `finally` blocks run, so that
nothing of it is left in the test's process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import tenacity

from agent.aio import Supervisor
from agent.config.handlers import RuntimeHandler
from agent.daemon import health, releasers
from agent.errdefs import NotFound
from agent.events import Exchange
from agent.images.documents import ImageConfig
from agent.images.image import Image
from agent.linux.mounts import Mount
from agent.logs.client import LogCopier
from agent.network.network import Network
from agent.pods import container_events, exits, recovery
from agent.pods.context import Pods
from agent.pods.registry import Registry
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.features import HandlerFeatures
from agent.runtime.v2.manager import TaskManager
from agent.snapshots.snapshotter import Snapshotter
from agent.store.kinds import Kind
from agent.store.ledger import Resource
from agent.store.release import Releases
from agent.store.store import Store
from cri.api import api_pb2
from cri.server import services
from tests.unit.pods.specs import facts
from tests.unit.simulation.clock import CURRENT, EPOCH, Life, close_descriptors
from tests.unit.simulation.copier import Copier, SimLauncher
from tests.unit.simulation.disk import Disk, SimWriter
from tests.unit.simulation.generations import GENERATIONS
from tests.unit.simulation.node import Node, daemon_cgroup
from tests.unit.simulation.shims import Shims, SimSockets
from tests.unit.simulation.syscalls import SimCgroups, SimMounts, SimNamespaces, SimProcesses

IMAGE = "docker.io/library/app:1"
SHIM_CGROUP, POD_CGROUP = "/shims", "/pods"
_TYPES = {"runc": "io.containerd.runc.v2", "kata": "io.containerd.kata.v2", "gvisor": "io.containerd.runsc.v1"}


def runtime_config(node: Node) -> RuntimeConfig:
    """The manager's, and what the simulated shims are told of it."""
    return RuntimeConfig(
        state_dir=node.state_dir,
        root_dir=node.root_dir,
        address=str(node.state_dir / "orlop.sock"),
        ttrpc_address=str(node.state_dir / "events.sock"),
        publish_binary="/bin/true",
        shim_cgroup=SHIM_CGROUP,
    )


def handlers(node: Node) -> dict[str, RuntimeHandler]:
    """One for each generation, and one whose sandbox is a task in a runc shim."""
    return _handlers(str(node.binaries))


@cache
def _handlers(binaries: str) -> dict[str, RuntimeHandler]:
    made = {
        each.name: RuntimeHandler(
            each.name,
            _TYPES[each.kind],
            path=f"{binaries}/{each.binary}",
            engine=f"{binaries}/runc" if each.kind == "runc" else "",
            sandbox="pinned" if each.kind == "runc" else "task",
        )
        for each in GENERATIONS
    }
    for name in ("1.6", "2.1"):
        plain = made[name]
        made[f"{name}-task"] = RuntimeHandler(f"{name}-task", plain.runtime_type, plain.path, plain.engine, sandbox="task")
    return made


class Images:
    """`agent.images.service.ImageService`, with one image that has no layers, and real snapshots."""

    mountpoint = "/var/lib/orlop/snapshots"

    def __init__(self, node: Node, snapshots: Snapshotter) -> None:
        self._node = node
        self._snapshots = snapshots
        config = ImageConfig(cmd=("/bin/app",))
        self._image = Image("sha256:" + "a" * 64, (IMAGE,), (), 1, (), "", config, ())

    def find(self, name: str) -> Image | None:
        return self._image if name in (IMAGE, self._image.id) else None

    def resolve(self, name: str) -> Image:
        if name not in (IMAGE, self._image.id):
            raise NotFound(f"image {name!r} is not on this node")
        return self._image

    async def prepare_rootfs(self, image_id: str, key: str, *_: Any) -> list[Mount]:
        return await self._snapshots.prepare(key, "")

    async def read_file(self, image_id: str, path: str) -> bytes | None:
        return None

    async def release_snapshot(self, resource: Resource) -> None:
        directory = self._snapshots.root / "containers" / resource.key
        for mount in self._node.kernel.mounts:
            if directory in Path(mount.source).parents:
                self._node.broken(f"snapshot {resource.key} is released while it is mounted at {mount.path}")
        await self._snapshots.remove(resource.key)

    async def nothing(self, *_: Any) -> None:
        pass

    release_ingest = release_unpack = nothing


@dataclass
class Daemon:
    """One incarnation."""

    node: Node
    shims: Shims
    copier: Copier
    number: int
    disk: Disk
    boot_id: str
    life: Life = field(init=False)
    context: Context = field(init=False)
    pods: Pods = field(init=False)
    store: Store = field(init=False)
    tasks: TaskManager = field(init=False)
    exchange: Exchange = field(init=False)
    known: asyncio.Event = field(default_factory=asyncio.Event)
    recovered: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """It has been killed."""

    def __post_init__(self) -> None:
        self.life = Life(self.number)
        self.context = copy_context()
        self.context.run(CURRENT.set, self.life)
        self._background = Supervisor("daemon")
        self._ends: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.node.kernel.make_cgroup(daemon_cgroup(self.life))
        self._verbs: Mapping[str, Any] = {}

    async def start(self) -> None:
        """Compose, and begin to recover. Raises CancelledError: it was killed meanwhile."""
        starting = self.node.loop.start(self._compose(), self.context)
        await _or_gone(starting, self.gone)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the daemon's."""
        return self.node.loop.start(work, self.context)

    def call(self, verb: str, request: Any) -> asyncio.Task[Any]:
        """A CRI call, as the server runs it."""
        return self.spawn(self._verbs[verb](request))

    def crash(self) -> None:
        """SIGKILL."""
        if self.life.dead:
            return
        self.life.dead = True
        self.node.sink = None
        for shim in self.shims.live():
            shim.hang_up()
        for connection in list(self.copier.connections):
            connection.close()
        self.gone.set()

    async def buried(self) -> None:
        """Return when nothing of a killed incarnation is left."""
        await self._end_tasks()
        if hasattr(self, "store"):
            await self.spawn(self._close())
        await self._end_tasks()
        close_descriptors(self.life, self.node.loop)

    async def _end_tasks(self) -> None:
        for _ in range(100):
            if not (tasks := self.life.tasks()):
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.01)
        raise AssertionError(f"a dead daemon goes on: {self.life.tasks()}")

    async def _close(self) -> None:
        """What the kernel does: descriptors."""
        for end in (getattr(self, name, None) for name in ("tasks", "logs")):
            if end is not None:
                with suppress(asyncio.CancelledError):
                    await (end.stop(0) if isinstance(end, TaskManager) else end.stop())
        await self.store.close()

    async def stop(self) -> None:
        """SIGTERM: in the order of `serve`."""
        self.life.ending = True
        await self.spawn(self._stop())
        await self._end_tasks()
        self.crash()

    async def _stop(self) -> None:
        for end in reversed(self._ends):
            await end()

    async def _compose(self) -> None:
        node, life = self.node, self.life
        processes, mounts, cgroups, namespaces = SimProcesses(node, life), SimMounts(node), SimCgroups(node), SimNamespaces(node)
        self.store = await Store.open(
            node.state_dir,
            node.root_dir,
            clock=lambda: EPOCH + node.loop.time(),
            boot_id=self.boot_id,
            writer=lambda _, commit, deliver: SimWriter(life, self.disk, commit, deliver),
        )
        self._ends.append(self.store.close)
        if self.number > 1:
            node.end_children(self.number - 1)
        await cgroups.create(SHIM_CGROUP)
        self.exchange = exchange = Exchange()
        subscription = exchange.subscribe()
        ledger = self.store.ledger
        wait = tenacity.wait_exponential_jitter(max=20, jitter=1)
        releases = Releases(ledger, lambda: EPOCH + node.loop.time(), wait=wait, sleep=lambda pause: asyncio.sleep(2 * pause))
        snapshots = Snapshotter(node.root_dir / "snapshots", cast(Any, processes), proc=node.top / "proc")
        await snapshots.open({resource.key for resource in ledger.all() if resource.kind is Kind.SNAPSHOT})
        self._ends.append(lambda: snapshots.close(1))
        images = Images(node, snapshots)
        self.logs = logs = LogCopier(node.state_dir, cast(Any, processes), launcher=cast(Any, SimLauncher(self.copier, life)))
        await logs.start()
        self._ends.append(logs.stop)
        network = _Network(
            processes,
            namespaces,
            conf_dir=node.cni_dir / "net.d",
            bin_dirs=(node.binaries,),
            cache_dir=node.cni_dir,
            environ={},
            remove_chains=node.remove_chains,
        )
        await network.start()
        self._ends.append(lambda: network.stop(1))
        self.tasks = tasks = TaskManager(
            runtime_config(node),
            ledger=ledger,
            exchange=exchange,
            processes=processes,
            mounts=mounts,
            cgroups=cgroups,
            connect=lambda bootstrap, _, supervisor, budget: self.shims.connect(life, bootstrap, supervisor, budget),
            sockets=SimSockets(self.shims),
        )
        node.sink = tasks
        self._ends.append(lambda: tasks.stop(5))
        registry = Registry(self.store.boot_records("sandboxes"), self.store.boot_records("containers"))
        await registry.load()
        supervisor = Supervisor("pods")
        parts: dict[str, Any] = {
            "state_dir": node.state_dir,
            "netns_dir": node.netns_dir,
            "pod_cgroup": POD_CGROUP,
            "handlers": handlers(node),
            "features": {name: HandlerFeatures() for name in handlers(node)},
            "default_handler": "2.1",
            "sandbox_image": IMAGE,
            "facts": facts(cgroup_v2=node.kernel.v2),
            "registry": registry,
            "ledger": ledger,
            "releases": releases,
            "tasks": tasks,
            "images": images,
            "network": network,
            "logs": logs,
            "namespaces": namespaces,
            "mounts": mounts,
            "cgroups": cgroups,
            "systemd": None,
            "exchange": exchange,
            "supervisor": supervisor,
            "stats": SimpleNamespace(oom_kills=_no_oom_kills, of_process=_no_cgroup),
        }
        self.pods = pods = Pods(**{name: part for name, part in parts.items() if name in Pods.__dataclass_fields__})
        releasers.register(pods)
        container_events.attach(pods)
        self._ends += [lambda: self._background.stop(0), lambda: releases.stop(5), lambda: supervisor.stop(5)]
        self._background.start(exits.watch(pods, subscription), name="exits")
        self._background.start(health.watch_pins(pods), name="pins")
        self._verbs = services.verbs(pods, self.known)[api_pb2.DESCRIPTOR.services_by_name["RuntimeService"]]
        self._background.start(self._recover(), name="recovery")

    async def _recover(self) -> None:
        await recovery.recover(self.pods, self.known)
        self.recovered.set()
        self._background.start(self.pods.releases.run_pending(asyncio.Event()), name="pending releases")


class _Network(Network):
    """The configuration never changes here, and needs no watch, which would take a tenth of the time."""

    async def start(self) -> None:
        await self.refresh()


async def _no_oom_kills(*_: Any) -> int:
    return 0


def _no_cgroup(*_: Any) -> None:
    return None


async def _or_gone(work: asyncio.Task[Any], gone: asyncio.Event) -> None:
    """Wait for the work, or for the daemon's death."""
    death = asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait((work, death), return_when=asyncio.FIRST_COMPLETED)
    finally:
        death.cancel()
    if work.done() and not work.cancelled():
        work.result()
