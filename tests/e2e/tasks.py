"""A `TaskManager` on the real node, without the rest of the daemon: for what a test has to do between two of its calls."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.config.handlers import RuntimeHandler
from agent.events import Event, Exchange
from agent.identifiers import new_id
from agent.linux.cgroups import Cgroups
from agent.linux.mounts import Mount, Mounts
from agent.linux.processes import Processes
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.manager import TaskManager
from agent.runtime.v2.task import CreateTask, Task
from agent.store.kinds import Kind
from agent.store.ledger import Intent, Resource
from agent.store.release import Releases
from agent.store.store import Store
from tests.e2e.node import CGROUP_PARENT, CGROUPS, Process, mounts, processes
from tests.e2e.toolbox import Pair

STATE = Path("/run/orlop")
PLUGIN = "io.containerd.runtime.v2.task"


def make_rootfs(top: Path) -> Path:
    """A root file system with a busybox."""
    for folder in ("bin", "dev", "proc", "tmp"):
        (top / folder).mkdir(parents=True, exist_ok=True)
    for name in ("busybox", "sh", "sleep", "true"):
        shutil.copy("/bin/busybox", top / "bin" / name)
    return top


@dataclass
class Tasks:
    """One incarnation of a task manager, and everything that it was given."""

    pair: Pair
    root: Path
    store: Store
    manager: TaskManager
    releases: Releases
    exchange: Exchange
    handler: RuntimeHandler
    events: list[Event] = field(default_factory=list)

    @property
    def rootfs(self) -> Path:
        return self.root / "rootfs"

    async def pinned(self) -> str:
        """A pinned sandbox: its shim."""
        sandbox_id = new_id()
        await self.store.ledger.intend(Intent(Kind.SHIM, sandbox_id, sandbox=sandbox_id))
        await self.manager.start_shim(sandbox_id, self.handler, {})
        return sandbox_id

    async def create(self, sandbox_id: str, argv: Sequence[str] = ("sleep", "1000"), task_id: str = "", **how: Any) -> Task:
        """A container; with the sandbox's id, the sandbox as a task."""
        task_id = task_id or new_id()
        intents = [Intent(Kind.TASK, task_id, sandbox_id, "" if task_id == sandbox_id else task_id)]
        if task_id == sandbox_id:
            intents.append(Intent(Kind.SHIM, sandbox_id, sandbox=sandbox_id))
        await self.store.ledger.intend(*intents)
        rootfs = [Mount("bind", str(self.rootfs), ("rbind", "rw"))]
        request = CreateTask(task_id, sandbox_id, self.handler, spec(task_id, argv), rootfs, **how)
        return await self.manager.create(request)

    async def run(self, sandbox_id: str, argv: Sequence[str] = ("sleep", "1000"), **how: Any) -> Task:
        """A container that runs."""
        task = await self.create(sandbox_id, argv, **how)
        await task.start()
        return task

    async def release(self, *kinds: Kind, **owner: str) -> list[tuple[Resource, Exception]]:
        """What the pods layer does at the end: all of it, in the ledger's order. Returns what is not gone."""
        owned = self.store.ledger.owned(**owner)
        return await self.releases.release([resource for resource in owned if not kinds or resource.kind in kinds])

    def told(self, task: Task) -> list[str]:
        """The events of a task so far, by name."""
        return [type(event).__name__ for event in self.events if event.container_id == task.id]

    async def until_told(self, *tasks: Task, event: str = "TaskDelete") -> None:
        """Wait for an event of each of these."""
        async with asyncio.timeout(30):
            while not all(event in self.told(task) for task in tasks):
                await asyncio.sleep(0.01)

    def shims(self, sandbox_id: str) -> list[Process]:
        """The processes that serve a sandbox; `state` is left out, so that they compare."""
        found = [p for p in processes() if p.argv and p.argv[0] == str(self.pair.shim_path) and sandbox_id in p.argv]
        return [replace(process, state="") for process in found if process.state != "Z"]

    def shim(self, sandbox_id: str) -> Process:
        [shim] = self.shims(sandbox_id)
        return shim

    async def until_replaced(self, sandbox_id: str, old: Process) -> Process:
        """The shim that takes the place of a dead one."""
        async with asyncio.timeout(30):
            while not (found := [shim for shim in self.shims(sandbox_id) if shim.pid != old.pid]):
                await asyncio.sleep(0.01)
        return found[0]

    def left_of_containers(self, sandbox_id: str) -> list[str]:
        """What is on the node of any container, though none is there."""
        tops = (STATE / PLUGIN, self.root / "lib" / PLUGIN)
        found = [str(path) for top in tops for path in top.glob("k8s.io/*") if path.name != sandbox_id]
        found += [str(path) for path in (STATE / "runc/k8s.io").iterdir()]
        found += [str(path) for path in CGROUPS.glob(f"*{CGROUP_PARENT}/pods/*") if path.is_dir()]
        found += [line for line in mounts() if str(STATE / PLUGIN) in line]
        return found + [str(process) for process in processes() if "init" in process.argv[1:2] or "sleep" in process.argv[:1]]


def spec(task_id: str, argv: Sequence[str]) -> dict[str, Any]:
    """An OCI spec; as any user may run it on a node without CAP_SYS_RESOURCE."""
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": list(argv), "env": ["PATH=/bin"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        ],
        "linux": {
            "cgroupsPath": f"{CGROUP_PARENT}/pods/{task_id}",
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}],
        },
    }


@contextmanager
def furnished(root: Path) -> Iterator[Path]:
    """`root` with what managers keep there between their runs; at the end the furniture is removed, and nothing else."""
    bundles, work_dirs = STATE / PLUGIN / "k8s.io", root / "lib" / PLUGIN / "k8s.io"
    engines = STATE / "runc/k8s.io"
    for folder in (bundles, work_dirs, engines):
        folder.mkdir(parents=True, exist_ok=True)
    make_rootfs(root / "rootfs")
    yield root
    try:
        for folder in (bundles, bundles.parent, engines, engines.parent, work_dirs):
            folder.rmdir()
    finally:
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(STATE, ignore_errors=True)
    for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
        for name in ("pods", "shims"):
            with suppress(FileNotFoundError):
                Path(f"{hierarchy}{CGROUP_PARENT}/{name}").rmdir()


@asynccontextmanager
async def running(pair: Pair, root: Path, engine: Path | None = None) -> AsyncIterator[Tasks]:
    """A started and loaded manager; with `engine` in the place of the pair's.

    At the end it lets go of everything, as a daemon that stops does.
    """
    config = RuntimeConfig(
        state_dir=STATE,
        root_dir=root / "lib",
        address=str(STATE / "orlop.sock"),
        ttrpc_address=str(STATE / "orlop.sock.ttrpc"),
        publish_binary=sys.executable,
        shim_cgroup=f"{CGROUP_PARENT}/shims",
        debug=True,
    )
    store = await Store.open(STATE, root / "lib")
    exchange = Exchange()
    node = Processes()
    manager = TaskManager(config, ledger=store.ledger, exchange=exchange, processes=node, mounts=Mounts(), cgroups=Cgroups())
    releases = Releases(store.ledger, time.time)
    releases.register(Kind.SHIM, lambda resource: manager.stop_shim(resource.key))
    releases.register(Kind.TASK, lambda resource: manager.delete(resource.key))
    handler = RuntimeHandler("runc", path=str(pair.shim_path), engine=str(engine or pair.engine_path))
    tasks = Tasks(pair, root, store, manager, releases, exchange, handler)
    subscription = exchange.subscribe()

    async def collect() -> None:
        async for event in subscription:
            tasks.events.append(event)

    collector = asyncio.create_task(collect())
    await manager.start()
    try:
        await manager.load_existing_tasks()
        for sandbox in {resource.sandbox for resource in store.ledger.all()}:
            await manager.loaded(sandbox)
        await manager.remove_work_dirs(await manager.orphaned_work_dirs())
        yield tasks
    except BaseException:  # so that a failed test doesn't fail the next one
        await releases.release(store.ledger.all())
        raise
    finally:
        await releases.stop(5)
        await manager.stop(5)
        await node.stop()
        await store.close()
        subscription.close()
        await collector
