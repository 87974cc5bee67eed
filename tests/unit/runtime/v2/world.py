"""A small node for the teardown's tests: one pod, its shim and containers, and one journal in which all that is done to them is written.

Bundles and engine state are real directories below the test's own; processes, mounts, cgroups, connections and the ledger are fakes that
behave as the real ones do. What goes wrong is set on the `World` and on its `Container`s.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agent.aio import KeyedLock, Supervisor
from agent.api.runtime.task.v3.shim_pb2 import ConnectResponse, DeleteResponse
from agent.config.handlers import RuntimeHandler
from agent.errdefs import Busy, Closed, DeadlineExceeded, NotFound, Unknown
from agent.events import Event, Exchange, Exit, TaskExit
from agent.linux.mounts import Holder, MountInfo
from agent.linux.processes import Command, Completed, Identity, ProcessInfo
from agent.runtime.v2.bootstrap import Bootstrap
from agent.runtime.v2.bundle import Bundle, Bundles
from agent.runtime.v2.cleanup import Node
from agent.runtime.v2.config import RuntimeConfig
from agent.runtime.v2.engine import Engine
from agent.runtime.v2.gate import Gate
from agent.runtime.v2.records import ShimRecord, TaskRecord
from agent.runtime.v2.shim import Shim
from agent.runtime.v2.sockets import Sockets
from agent.runtime.v2.task import Stage, Task
from agent.store.ledger import Kind, Resource

M = TypeVar("M", bound=Message)

POD = "pod"
SHIM_PID = 10
SHIM_BINARY = "/bin/true"
"""Any executable: that it is there is all that is looked at."""
LEAF = f"/shims/{POD}"


@dataclass
class Container:
    """What there is of a container, apart from its bundle."""

    id: str
    pid: int
    runs: bool = True
    in_cgroup: bool = True
    mounted: bool = True
    holder: bool = False
    """Something holds its rootfs: unmounting is refused."""
    unkillable: bool = False
    known_to_shim: bool = True
    shim_delete_does: Callable[[World, Container], None] = field(default=lambda world, container: world.end(container))
    shim_delete_says: int = 0
    delete_does: Callable[[World, Container], None] = field(default=lambda world, container: world.end(container))
    """What the living shim's Delete does."""


class World:
    """The pod, and everything that is done to it."""

    def __init__(self, tmp: Path, containers: Iterable[str] = ("c1", "c2"), *, pinned: bool = True) -> None:
        self.journal: list[str] = []
        self.config = RuntimeConfig(tmp / "run", tmp / "lib", "/run/orlop.sock", "/run/orlop.ttrpc", "/bin/true", shim_cgroup="/shims")
        self.containers: dict[str, Container] = {}
        self.shim_runs = True
        self.shim_ends_on_shutdown = True
        self.redials = False
        """Whether a redial of the living shim succeeds."""
        self.answers: dict[str, Callable[[], None]] = {}
        """Method -> what happens before the shim answers it; may raise."""
        self.supervisor = Supervisor("test")
        self.ledger = FakeLedger(self)
        self.node = Node(
            config=self.config,
            processes=FakeProcesses(self),
            mounts=FakeMounts(self),
            cgroups=FakeCgroups(self),
            bundles=JournalledBundles(self),
            engine=JournalledEngine(self),
            sockets=FakeSockets(self),
            ledger=self.ledger,
            supervisor=self.supervisor,
            locks=KeyedLock(),
        )
        self.exchange = JournalledExchange(self)
        self.connection = FakeConnection(self)
        self.shim_process = FakeProcess(self, SHIM_PID, "shim")
        self.tasks: dict[str, Task] = {}
        self._names = list(containers)
        self._pinned = pinned

    async def build(self) -> World:
        """Start the shim and run the containers in it, oldest first. The journal begins after that."""
        record = ShimRecord(POD, POD, RuntimeHandler("runc"), self._pinned, SHIM_BINARY, "unix:///s", 2, "ttrpc", SHIM_PID, 1)
        self.shim = Shim(
            record,
            self.node.bundles.at(POD),
            namespace="k8s.io",
            gate=Gate(POD),
            supervisor=self.supervisor,
            watchers=self.supervisor,
            processes=self.node.processes,
            connect=self._connect,
        )
        self.shim.process = self.shim_process
        await self.shim.reach(1)
        if self._pinned:
            await self.node.bundles.create(POD, {})
        for number, name in enumerate(self._names):
            await self.add(name, pid=100 + number)
        self.journal.clear()
        return self

    async def add(self, name: str, *, pid: int, create: bool = True, live: bool = True, created: bool = True) -> Task:
        """A container. `create`: Create was intended; `live`: it was sent; `created`: it was answered."""
        container = self.containers[name] = Container(name, pid)
        root = self.config.engine_root / self.config.namespace
        if create:
            (root / name).mkdir(parents=True)
            (root / name / "state.json").write_text(json.dumps({"init_process_pid": pid, "init_process_start": 1}))
        else:
            container.runs = container.in_cgroup = container.mounted = container.known_to_shim = False
        record = TaskRecord(
            id=name,
            sandbox=POD,
            shim=POD,
            binary=SHIM_BINARY,
            engine="runc",
            engine_root=str(root),
            systemd_cgroup=False,
            cgroup=f"/pods/{name}",
            create=create,
            pid=pid if created else 0,
            start_time=1 if created else 0,
        )
        bundle = await self.node.bundles.create(name, {})
        task = self.tasks[name] = Task(record, bundle, self.shim, self.exchange)
        if live:
            task.move(Stage.LIVE)
        return task

    def write(self, line: str) -> None:
        self.journal.append(line)

    def end(self, container: Container) -> None:
        """What a `shim delete` or a Delete that works does: no process, no engine state, no cgroup, no mount."""
        self.kill(container)
        container.in_cgroup = False
        container.mounted = container.mounted and container.holder
        subprocess.run(["rm", "-rf", self.engine_state(container.id)], check=True)

    def kill(self, container: Container) -> None:
        container.runs = container.runs and container.unkillable

    def engine_state(self, name: str) -> Path:
        return self.config.engine_root / self.config.namespace / name

    def shim_dies(self) -> None:
        """SIGKILL from outside: the process and the connection end, the containers don't."""
        self.shim_runs = False
        self.shim_process.ended.set()
        self.connection.lose()

    def left(self) -> list[str]:
        """What is on the node still."""
        found = ["shim"] if self.shim_runs else []
        found += [f"process of {c.id}" for c in self.containers.values() if c.runs]
        found += [f"mount of {c.id}" for c in self.containers.values() if c.mounted]
        for top in (self.config.bundles, self.config.work_dirs, self.config.engine_root / self.config.namespace):
            found += [str(path.relative_to(top.parents[2])) for path in sorted(top.glob("*"))]
        return found

    async def _connect(self, _: Bootstrap, __: str, ___: Supervisor, ____: float) -> FakeConnection:
        if not self.shim_runs or (self.connection.closed and not self.redials):
            raise Closed("nobody answers")
        self.connection = FakeConnection(self)
        return self.connection


class FakeProcess:
    def __init__(self, world: World, pid: int, name: str) -> None:
        self.identity = Identity(pid, 1)
        self.ended = asyncio.Event()
        self._world = world
        self._name = name

    @property
    def pid(self) -> int:
        return self.identity.pid

    def alive(self) -> bool:
        return not self.ended.is_set()

    async def wait(self) -> None:
        await self.ended.wait()
        self._world.write(f"{self._name} has ended")

    def kill(self, signal_number: int, /) -> None:
        if self.alive():
            self._world.write(f"{self._name} gets signal {signal_number}")
            self.end()

    def end(self) -> None:
        self.ended.set()
        if self.pid == SHIM_PID:
            self._world.shim_runs = False
            self._world.connection.lose()

    def close(self) -> None:
        pass


class _Init(FakeProcess):
    """A container's first process."""

    def __init__(self, world: World, container: Container) -> None:
        super().__init__(world, container.pid, f"init of {container.id}")
        self._container = container

    def end(self) -> None:
        self._world.kill(self._container)
        if not self._container.runs:
            self.ended.set()


class FakeProcesses:
    def __init__(self, world: World) -> None:
        self._world = world

    async def open(self, pid: int, start_time: int | None = None) -> FakeProcess | None:
        if pid == SHIM_PID:
            return self._world.shim_process if self._world.shim_runs else None
        found = [c for c in self._world.containers.values() if c.pid == pid and c.runs]
        return _Init(self._world, found[0]) if found and start_time in (None, 1) else None

    async def run(self, command: Command) -> Completed:
        name = command.argv[command.argv.index("-id") + 1] if "-id" in command.argv else command.argv[-1]
        container = self._world.containers[name]
        if command.argv[-1] == "delete":
            assert command.cwd == Path(command.argv[command.argv.index("-bundle") + 1])
            if not command.cwd.is_dir():
                raise FileNotFoundError(2, "No such file or directory", command.argv[0])
            self._world.write(f"shim delete {name}")
            container.shim_delete_does(self._world, container)
            return Completed(container.shim_delete_says, b"", b"")
        self._world.write(f"engine delete {name}")
        self._world.end(container)
        return Completed(0, b"", b"")

    async def table(self) -> list[ProcessInfo]:
        return [
            ProcessInfo(c.pid, 1, "runc:[2:INIT]", ("runc", "init"), "S", 1, {"memory": f"/pods/{c.id}"})
            for c in self._world.containers.values()
            if c.runs and c.in_cgroup
        ]


class FakeMounts:
    def __init__(self, world: World) -> None:
        self._world = world

    async def at_or_below(self, path: Path) -> list[MountInfo]:
        self._world.write(f"look {path.name}")
        mounted = self._world.containers[path.name].mounted
        return [MountInfo(1, 1, "0:1", "/", path / "rootfs", "rw", "", "overlay", "overlay", "rw")] if mounted else []

    async def unmount_all(self, path: Path) -> None:
        self._world.write(f"unmount {path.name}")
        container = self._world.containers[path.name]
        if container.mounted and container.holder:
            raise Busy(f"can't unmount {path}: held by process 9 (tail)")
        container.mounted = False

    async def holders(self, path: Path) -> list[Holder]:
        return [Holder(9, "tail", "cwd", str(path), "/")]


class FakeCgroups:
    def __init__(self, world: World) -> None:
        self._world = world

    async def create(self, path: str) -> None:
        self._world.write(f"cgroup create {path}")

    async def exists(self, path: str) -> bool:
        return bool(await self.processes(path))

    async def processes(self, path: str) -> set[int]:
        return {c.pid for c in self._world.containers.values() if path == f"/pods/{c.id}" and c.runs and c.in_cgroup}

    async def named(self, path: str) -> str:
        return str(await self.processes(path))

    async def kill(self, path: str, budget: float) -> None:
        self._world.write(f"cgroup kill {path}")
        for container in self._world.containers.values():
            if path == f"/pods/{container.id}" and container.in_cgroup:
                self._world.kill(container)
        if left := await self.processes(path):
            raise DeadlineExceeded(f"after {budget:g} s cgroup {path} still has {left}")

    async def remove(self, path: str) -> None:
        self._world.write(f"cgroup remove {path}")
        if left := await self.processes(path):
            raise Busy(f"can't remove cgroup {path}: in it {left}")


class JournalledBundles(Bundles):
    def __init__(self, world: World) -> None:
        super().__init__(world.config.bundles, world.config.work_dirs)
        self._world = world

    async def remove(self, bundle: Bundle) -> None:
        self._world.write(f"bundle {bundle.id}")
        await super().remove(bundle)

    async def remove_work_dir(self, bundle: Bundle) -> None:
        self._world.write(f"work dir {bundle.id}")
        await super().remove_work_dir(bundle)


class JournalledEngine(Engine):
    def __init__(self, world: World) -> None:
        super().__init__(world.config, FakeProcesses(world))
        self._world = world

    async def init(self, record: TaskRecord) -> Identity | None:
        self._world.write(f"identify {record.id}")
        return await super().init(record)

    async def remove_state(self, record: TaskRecord) -> None:
        self._world.write(f"engine state {record.id}")
        await super().remove_state(record)


class FakeSockets(Sockets):
    def __init__(self, world: World) -> None:
        self._world = world

    async def remove_stale(self, address: str) -> None:
        if address == "unix:///s":
            assert not self._world.shim_runs
            self._world.write("socket")


class JournalledExchange(Exchange):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.published: list[Event] = []

    def publish(self, event: Event) -> None:
        self.published.append(event)
        status = f" {event.exit.status}" if isinstance(event, TaskExit) else ""
        self._world.write(f"{type(event).__name__} {event.container_id}{status}")
        super().publish(event)


class FakeLedger:
    def __init__(self, world: World) -> None:
        self._world = world
        self.entries: dict[tuple[Kind, str], Resource] = {}
        self.failures: dict[str, str] = {}

    def get(self, kind: Kind, key: str) -> Resource | None:
        return self.entries.get((kind, key))

    def all(self) -> list[Resource]:
        return list(self.entries.values())

    async def hold(self, kind: Kind, key: str, data: dict[str, Any] | None = None) -> None:
        self._world.write(f"hold {kind} {key}")

    async def failed(self, kind: Kind, key: str, error: str, next_attempt: float) -> None:
        self.failures[key] = error
        self._world.write(f"failed {kind} {key}")

    async def drop(self, kind: Kind, key: str) -> None:
        self._world.write(f"drop {kind} {key}")


class FakeConnection:
    """The shim's end as well: answers for the containers that it knows."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._closed = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def lose(self) -> None:
        self._closed.set()

    def close(self) -> None:
        if self._world.shim.tasks:  # whoever then gets Closed has to find out that its task is the cleanup's
            self._world.write("connection closed before its tasks were taken over")
        if not self._closed.is_set():
            self._world.write("connection closed by us")
        self._closed.set()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def call(self, service: str, method: str, request: Message, response: type[M], *, timeout: float | None = None) -> M:
        assert timeout is None, "a deadline that reaches the shim kills the engine that works for it"
        if self.closed:
            raise Closed("closed")
        if method == "Connect":
            return _as(response, ConnectResponse(shim_pid=SHIM_PID))
        container_id: str = getattr(request, "id", "")
        self._world.write(f"{method} {container_id}")
        if method in self._world.answers:
            self._world.answers[method]()
        if method == "Shutdown":
            self._shutdown()
            return response()
        container = self._world.containers[container_id]
        if not container.known_to_shim:
            raise NotFound(f"container {container_id} not created: not found")
        if method == "Kill":
            self._kill(container)
        elif method == "Delete":
            container.delete_does(self._world, container)
            if container.mounted and container.holder:
                raise BUSY_ROOTFS
            container.known_to_shim = False
            return _as(response, DeleteResponse(exit_status=137, exited_at=Timestamp(seconds=5)))
        return response()

    def _kill(self, container: Container) -> None:
        if not container.runs:
            raise NotFound("process already finished: not found")
        self._world.kill(container)
        if not container.unkillable:
            self._world.tasks[container.id].finish(Exit(128 + signal.SIGKILL, 5, container.pid))

    def _shutdown(self) -> None:
        known = [c for c in self._world.containers.values() if c.known_to_shim]
        if not known and self._world.shim_ends_on_shutdown:
            self._world.write("shim exits")
            self._world.shim_dies()
            raise Closed("the answer was lost")


BUSY_ROOTFS = Unknown("failed rootfs umount: device or resource busy")
"""What a shim answers when the container is gone, and its rootfs can't be unmounted."""


def _as(wanted: type[M], message: Message) -> M:
    assert isinstance(message, wanted)
    return message
