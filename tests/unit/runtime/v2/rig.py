"""A task manager on a simulated node, with a real ledger; and its successors on the same node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.config.handlers import RuntimeHandler
from agent.events import Event, Exchange
from agent.linux.mounts import Mount
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.manager import TaskManager
from agent.runtime.v2.task import CreateTask, Task
from agent.store.ledger import Intent, Kind, Ledger
from agent.store.release import Releases
from agent.store.store import Store
from tests.unit.runtime.v2.sim import SimCgroups, SimNode

RUNC = RuntimeHandler("runc", path="/bin/true")
GVISOR = RuntimeHandler("gvisor", "io.containerd.runsc.v1", path="/bin/true", sandbox="task")


class Collector(Exchange):
    """Keeps what is published, without a subscription to drain."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__()
        self._events = events

    def publish(self, event: Event) -> None:
        self._events.append(event)


@dataclass
class Rig:
    """A manager on a node, with a ledger; and its successors on the same node."""

    tmp: Path
    node: SimNode
    store: Store
    manager: TaskManager = field(init=False)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.releases = Releases(self.ledger, time.time)
        self.releases.register(Kind.SHIM, lambda resource: self.manager.stop_shim(resource.key))
        self.releases.register(Kind.TASK, lambda resource: self.manager.delete(resource.key))
        self.boot()

    @property
    def ledger(self) -> Ledger:
        return self.store.ledger

    def boot(self) -> None:
        config = RuntimeConfig(
            self.tmp / "run", self.tmp / "lib", "/run/orlop.sock", str(self.tmp / "events.sock"), "/bin/true", shim_cgroup="/shims"
        )
        exchange = Collector(self.events)
        self.manager = TaskManager(
            config,
            ledger=self.ledger,
            exchange=exchange,
            processes=self.node,
            mounts=self.node,
            cgroups=SimCgroups(self.node),
            connect=self.node.connect,
        )

    async def restart(self, *, during: bool = True) -> None:
        """The daemon is killed: its connections end, and nothing else."""
        for shim in self.node.shims.values():
            shim.hang_up()
        await self.manager.stop(0)
        self.node.calls.clear()
        self.node.commands.clear()
        self.boot()
        if during:
            await self.load()

    async def load(self) -> None:
        """What recovery does."""
        await self.manager.load_existing_tasks()
        await self.manager.loaded("pod")

    async def pinned(self, sandbox: str = "pod") -> None:
        await self.ledger.intend(Intent(Kind.SHIM, sandbox, sandbox))
        await self.manager.start_shim(sandbox, RUNC, {"io.kubernetes.cri.sandbox-name": "web"})

    async def create(self, name: str = "c1", sandbox: str = "pod", handler: RuntimeHandler = RUNC) -> Task:
        if self.ledger.get(Kind.TASK, name) is None:
            await self.ledger.intend(Intent(Kind.TASK, name, sandbox, "" if name == sandbox else name))
        spec: dict[str, Any] = {"linux": {"cgroupsPath": f"/pods/{name}"}, "annotations": {"mine": "kept"}}
        return await self.manager.create(CreateTask(name, sandbox, handler, spec, [Mount("bind", "/x", ("ro",))]))

    async def sandbox_task(self, handler: RuntimeHandler = RUNC) -> Task:
        await self.ledger.intend(Intent(Kind.SHIM, "pod", "pod"))
        return await self.create("pod", handler=handler)

    async def release(self) -> None:
        assert await self.releases.release_owned(sandbox="pod") == []
        assert self.ledger.all() == []
        assert self.left() == []

    def left(self) -> list[str]:
        found = [str(path) for top in ("run", "lib") for path in (self.tmp / top).glob("io.containerd.*/*/*")]
        found += [f"mount {name}" for name in self.node.mounted] + [f"cgroup {path}" for path in self.node.cgroups_made]
        return found + [f"shim {shim.group}" for shim in self.node.shims.values() if shim.process.alive()]

    def bundle(self, name: str) -> Path:
        return self.tmp / "run/io.containerd.runtime.v2.task/k8s.io" / name

    def told(self, name: str) -> list[str]:
        return [type(event).__name__ for event in self.events if event.container_id == name]


@asynccontextmanager
async def rig_in(tmp: Path) -> AsyncIterator[Rig]:
    store = await Store.open(tmp / "run", tmp / "lib", boot_id="b")
    rig = Rig(tmp, SimNode(), store)
    await rig.manager.load_existing_tasks()
    try:
        yield rig
    finally:
        for waiting in rig.node.hang.values():
            waiting.set()
        await rig.releases.stop(0)
        await rig.manager.stop(0)
        await store.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
